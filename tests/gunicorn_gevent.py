"""Configuration of gunicorn for gevent: patches before anything else is imported."""

from gevent import monkey

monkey.patch_all()
