# gunicorn.conf.py
import multiprocessing

preload_app = True
worker_class = "gthread"
workers = 2 * multiprocessing.cpu_count()
threads = 4
