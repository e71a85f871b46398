from flask import Flask
from flask_serversession import ServerSession, session
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter = InMemorySpanExporter()  # or the one that your collector needs
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))

app = Flask(__name__)
app.config.update(
    SECRET_KEY="change me",
    SESSION_BACKEND="redis",
    SESSION_REDIS_URL="redis://localhost:6379/0",
)
RedisInstrumentor().instrument(tracer_provider=provider)
FlaskInstrumentor().instrument_app(app, tracer_provider=provider)
ServerSession(app)


@app.get("/")
def index():
    session["visits"] = session.get("visits", 0) + 1
    return str(session["visits"])
