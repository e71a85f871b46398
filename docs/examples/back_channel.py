from authlib.integrations.flask_client import OAuth
from flask import Flask, redirect, request, url_for
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from flask_serversession import ServerSession, session

app = Flask(__name__)
app.config["SECRET_KEY"] = "change me"
server_session = ServerSession(app)

ISSUER = "https://login.example"
CLIENT_ID = "shop"
EVENT = "http://schemas.openid.net/event/backchannel-logout"

provider = OAuth(app).register(
    "provider",
    client_id=CLIENT_ID,
    client_secret="change me too",
    server_metadata_url=f"{ISSUER}/.well-known/openid-configuration",
    client_kwargs={"scope": "openid"},
)


@app.get("/log-in")
def log_in():
    return provider.authorize_redirect(url_for("callback", _external=True))


@app.get("/callback")
def callback():
    claims = provider.authorize_access_token()[
        "userinfo"
    ]  # the ID token, which it checks
    session["_user_id"] = claims["sub"]
    if "sid" in claims:
        session.meta["sid"] = claims["sid"]
    return redirect("/")


def read_logout_token(text):
    """Check a logout token, and return its claims."""
    keys = KeySet.import_key_set(provider.fetch_jwk_set())
    claims = jwt.decode(text, keys, algorithms=["RS256"]).claims
    jwt.JWTClaimsRegistry(
        iss={"essential": True, "value": ISSUER},
        aud={"essential": True, "value": CLIENT_ID},
        iat={"essential": True},
    ).validate(claims)
    is_logout = EVENT in claims.get("events", {}) and "nonce" not in claims
    if not is_logout or not (claims.get("sid") or claims.get("sub")):
        raise ValueError("This is no logout token.")
    return claims


@app.post("/back-channel-log-out")
def log_out():
    try:
        claims = read_logout_token(request.form["logout_token"])
    except (JoseError, ValueError):
        return "", 400, {"Cache-Control": "no-store"}
    user, sid = claims.get("sub"), claims.get("sid")
    if sid is None:
        server_session.revoke_user(user)
    else:
        # Without a user, all sessions have to be gone through.
        listed = server_session.sessions_of(user) if user else server_session.sessions()
        for info in [info for info in listed if info.meta.get("sid") == sid]:
            server_session.revoke(info.handle)
    return "", 200, {"Cache-Control": "no-store"}
