from flask import stream_with_context
from flask import Flask
from flask_serversession import ServerSession, session

app = Flask(__name__)
app.config["SECRET_KEY"] = "change me"
ServerSession(app)


@app.get("/export")
def export():
    session["exports"] = session.get("exports", 0) + 1

    @stream_with_context
    def rows():
        for number in range(3):
            yield f"{number}\n"
        session["finished"] = True
        session.save()

    return rows()
