from flask import Flask, flash, redirect, request
from flask_serversession import ServerSession, session

app = Flask(__name__)
app.config["SECRET_KEY"] = "change me"
ServerSession(app)


@app.post("/cart/<product>")
def add_to_cart(product):
    cart = session.setdefault("cart", {})
    cart[product] = cart.get(product, 0) + 1
    return cart


def find_user(name, password):
    ...  # look into your database; compare hashes, not passwords
    return {"id": 7, "name": name}


@app.post("/log-in")
def log_in():
    user = find_user(request.form["name"], request.form["password"])
    session["_user_id"] = user["id"]
    session.permanent = "remember" in request.form
    return redirect("/")


@app.post("/log-out")
def log_out():
    session.destroy()
    flash("Good-bye.")
    return redirect("/")
