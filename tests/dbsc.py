"""A double of a browser that binds sessions to its device, with a clock to set.

It does what Chromium 156 was seen to do: it registers keys, holds a request whose proof
has expired until it has a new one, signs what it got to sign, and gives a key up, or
tries again, by the status of the answer.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import typing as t
from collections.abc import Callable
from http.cookies import SimpleCookie

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from flask import Flask
from werkzeug.test import TestResponse

BASE_URL = "https://shop.test"
_MAX_REFUSALS = 4


def encode(data: bytes | str | dict[str, t.Any]) -> str:
    """Write base64url without padding; of a dict, its JSON."""
    if isinstance(data, dict):
        data = json.dumps(data, separators=(",", ":"))
    if isinstance(data, str):
        data = data.encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Key:
    """A key that never leaves a device."""

    def __init__(self) -> None:
        self.private = ec.generate_private_key(ec.SECP256R1())

    @property
    def jwk(self) -> dict[str, t.Any]:
        numbers = self.private.public_key().public_numbers()
        x, y = (encode(n.to_bytes(32, "big")) for n in (numbers.x, numbers.y))
        return {"crv": "P-256", "kty": "EC", "x": x, "y": y}

    @property
    def identifier(self) -> str:
        numbers = self.private.public_key().public_numbers()
        return encode(bytes([2 + numbers.y % 2]) + numbers.x.to_bytes(32, "big"))

    def sign(self, signed: str) -> str:
        der = self.private.sign(signed.encode(), ec.ECDSA(hashes.SHA256()))
        r, s = decode_dss_signature(der)
        return encode(r.to_bytes(32, "big") + s.to_bytes(32, "big"))

    def token(
        self,
        challenge: str,
        *,
        is_registration: bool = False,
        header: dict[str, t.Any] | None = None,
        payload: dict[str, t.Any] | None = None,
    ) -> str:
        """Sign a challenge.

        :param header: What to put beside, or in place of, what a browser has there.
        :param payload: The same.
        """
        head: dict[str, t.Any] = {"alg": "ES256", "typ": "dbsc+jwt"}
        if is_registration:
            head["jwk"] = self.jwk
        head |= header or {}
        signed = f"{encode(head)}.{encode({'jti': challenge} | (payload or {}))}"
        return f"{signed}.{self.sign(signed)}"


@dataclasses.dataclass
class DeviceSession:
    """What a browser keeps of a session that is bound to its device."""

    key: Key
    id: str
    refresh_url: str
    cookie: str
    attributes: str
    excluded: list[str]
    initiators: list[str]
    challenge: str | None = None


@dataclasses.dataclass
class _Cookie:
    value: str
    attributes: dict[str, str]
    ends_at: float | None


class DeviceBrowser:
    """A browser with a cookie jar of its own, and perhaps keys.

    :param clock: Of the browser.
    :param can_bind: Whether it knows device-bound sessions at all.
    """

    def __init__(
        self, app: Flask, clock: Callable[[], float], can_bind: bool = True
    ) -> None:
        self.app = app
        self.clock = clock
        self.can_bind = can_bind
        self.cookies: dict[str, _Cookie] = {}
        self.sessions: dict[str, DeviceSession] = {}
        #: What happened, as Chromium's events tell it.
        self.events: list[str] = []
        #: Called before each request to the route; what it returns is the status of an
        #: answer that does not come from the application, 0 for none at all.
        self.proxy: Callable[[], int | None] = lambda: None
        #: Whether an offer is taken at once.
        self.registers = True
        self.offers: list[str] = []

    @property
    def id(self) -> str:
        """The id in the session's cookie."""
        return self.cookies["session"].value.rsplit(".", 2)[0]

    # Cookies

    def copy_cookies_to(self, other: DeviceBrowser) -> None:
        """What an infostealer does."""
        other.cookies = {
            name: dataclasses.replace(cookie) for name, cookie in self.cookies.items()
        }

    def live_cookies(self) -> dict[str, str]:
        now = self.clock()
        self.cookies = {
            name: cookie
            for name, cookie in self.cookies.items()
            if cookie.ends_at is None or cookie.ends_at > now
        }
        return {name: cookie.value for name, cookie in self.cookies.items()}

    def _keep_cookies(self, response: TestResponse) -> None:
        for header in response.headers.getlist("Set-Cookie"):
            ((name, morsel),) = SimpleCookie(header).items()
            ends_at: float | None = None
            if morsel["max-age"]:
                ends_at = self.clock() + int(morsel["max-age"])
            elif morsel["expires"].endswith("1970 00:00:00 GMT"):
                ends_at = 0.0
            pairs = [part.strip() for part in header.split(";")[1:]]
            kept = {
                key.lower(): value
                for key, _, value in (pair.partition("=") for pair in pairs)
                if key.lower() not in ("expires", "max-age")
            }
            self.cookies[name] = _Cookie(morsel.value, kept, ends_at)

    # Requests

    def send(
        self,
        path: str,
        method: str = "GET",
        headers: t.Mapping[str, str] | None = None,
        data: t.Mapping[str, str] | None = None,
    ) -> TestResponse:
        """Send a request as it is, and keep the cookies of the answer."""
        sent = dict(headers or {})
        if cookies := self.live_cookies():
            sent["Cookie"] = "; ".join(f"{k}={v}" for k, v in cookies.items())
        client = self.app.test_client(use_cookies=False)
        response = client.open(
            path, method=method, base_url=BASE_URL, headers=sent, data=data
        )
        self._keep_cookies(response)
        return response

    def fetch(
        self,
        path: str,
        method: str = "GET",
        *,
        site: str = "same-origin",
        mode: str = "navigate",
        data: t.Mapping[str, str] | None = None,
    ) -> TestResponse:
        """Visit a page, as a browser does: with a proof, if it can get one."""
        headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode}
        headers["Referer"] = f"{BASE_URL}/"
        if skipped := self._prove_all(path, site):
            headers["Secure-Session-Skipped"] = skipped
        response = self.send(path, method, headers, data)
        self._take_challenges(response)
        if offer := response.headers.get("Secure-Session-Registration"):
            self.offers.append(offer)
            if self.can_bind and self.registers:
                self.register(offer)
        return response

    def follow(self, path: str, site: str = "cross-site") -> TestResponse:
        """Follow a link, and what its answer does to be followed again."""
        response = self.fetch(path, site=site)
        if "location.reload()" in response.text:
            self.events.append("reloaded")
            response = self.fetch(path, site="same-origin")
        return response

    def restart(self) -> None:
        """Forget what is kept in memory alone."""
        for session in self.sessions.values():
            session.challenge = None

    # Keys

    def register(self, offer: str) -> bool:
        """Make a key, and register it."""
        match = re.fullmatch(r'\(ES256\);path="(/[^"]*)";challenge="([^"]+)"', offer)
        assert match is not None, offer
        path, challenge = match.groups()
        key = Key()
        token = key.token(challenge, is_registration=True)
        response = self._ask(path, {"Secure-Session-Response": token})
        if response is None or response.status_code != 200:
            self.events.append("registration failed")
            return False
        told = json.loads(response.text)
        (credential,) = told["credentials"]
        assert credential["type"] == "cookie"
        assert "max-age" not in credential["attributes"].lower()
        assert told["scope"]["include_site"] is False
        session = DeviceSession(
            key,
            told["session_identifier"],
            told["refresh_url"],
            credential["name"],
            credential["attributes"],
            [rule["path"] for rule in told["scope"]["scope_specification"]],
            told.get("allowed_refresh_initiators", []),
        )
        self.sessions[session.id] = session
        self._take_challenges(response)
        self.events.append("registered")
        return True

    def _ask(self, path: str, headers: dict[str, str]) -> TestResponse | None:
        status = self.proxy()
        if status is None:
            # As Chromium has them, whatever caused the request.
            always = {
                "Sec-Fetch-Site": "same-origin",
                "Sec-Fetch-Mode": "no-cors",
                "Origin": BASE_URL,
            }
            return self.send(path, "POST", always | headers)
        if status == 0:
            return None
        return TestResponse((), f"{status} -", {}, None)  # type: ignore[arg-type]

    def _take_challenges(self, response: TestResponse) -> None:
        for header in response.headers.getlist("Secure-Session-Challenge"):
            match = re.fullmatch(r'"([^"]+)";id="([\w-]+)"', header)
            assert match is not None, header
            challenge, id = match.groups()
            if id in self.sessions:
                self.sessions[id].challenge = challenge

    def _prove_all(self, path: str, site: str) -> str | None:
        """Get the proofs that a request lacks; return what to say if that fails."""
        skipped: str | None = None
        for session in [*self.sessions.values()]:
            is_excluded = path == session.refresh_url or any(
                f"{path}/".startswith(f"{prefix}/") for prefix in session.excluded
            )
            is_foreign = site in ("cross-site", "same-site")
            if is_excluded or (is_foreign and "*" not in session.initiators):
                continue
            cookie = self.cookies.get(session.cookie) if self.live_cookies() else None
            if cookie is not None and self._fits(session, cookie):
                continue
            if (failure := self.refresh(session)) is not None:
                skipped = f'{failure};session_identifier="{session.id}"'
        return skipped

    def _fits(self, session: DeviceSession, cookie: _Cookie) -> bool:
        """Whether a cookie has just the attributes that were told."""
        pairs = (part.strip().partition("=") for part in session.attributes.split(";"))
        return cookie.attributes == {key.lower(): value for key, _, value in pairs}

    def refresh(self, session: DeviceSession) -> str | None:
        """Prove that the key is there; return why that was not possible now."""
        for _ in range(_MAX_REFUSALS):
            headers = {"Sec-Secure-Session-Id": session.id}
            if session.challenge is not None:
                headers["Secure-Session-Response"] = session.key.token(
                    session.challenge
                )
            session.challenge = None
            response = self._ask(session.refresh_url, headers)
            if response is None:
                return "unreachable"
            status = response.status_code
            if status >= 500:
                return "server_error"
            if status == 403 and "Secure-Session-Challenge" in response.headers:
                self._take_challenges(response)
                self.events.append("challenged")
                continue
            if status != 200:
                break
            self._take_challenges(response)
            if json.loads(response.text).get("continue") is False:
                break
            self.events.append("refreshed")
            return None
        self.events.append("ended")
        del self.sessions[session.id]
        return None
