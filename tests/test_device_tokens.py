"""What is taken for a token of a browser, and what never is."""

from __future__ import annotations

import base64
import json
import typing as t

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from flask_serversession.cookie import CookieSigner
from flask_serversession.device.seals import end_of_proof
from flask_serversession.device.seals import is_challenge
from flask_serversession.device.seals import make_challenge
from flask_serversession.device.seals import make_proof
from flask_serversession.device.tokens import MAX_LENGTH
from flask_serversession.device.tokens import read_point
from flask_serversession.device.tokens import read_token
from flask_serversession.device.tokens import unquote
from flask_serversession.device.tokens import write_point

from .dbsc import Key
from .dbsc import encode
from .figures import add_counts

# Other work on the same machine must not fail a test.
without_deadline = settings(deadline=None, max_examples=150)

KEY, OTHER = Key(), Key()
CHALLENGE = "6b0e1c85.pii2FZdobQRf.T_gwYL"
POINT, OTHER_POINT = (t.cast(bytes, read_point(key.identifier)) for key in (KEY, OTHER))
REGISTRATION = KEY.token(CHALLENGE, is_registration=True)
REFRESH = KEY.token(CHALLENGE)
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

#: That of Chromium 156, from a log.
SEEN = (
    "eyJhbGciOiJFUzI1NiIsImp3ayI6eyJjcnYiOiJQLTI1NiIsImt0eSI6IkVDIiwieCI6Il84bUt3TWhyNj"
    "NZU0RVM3MzTmE5b2ZULVVxZVJQcENCcHVlWU8yZ21FaEEiLCJ5IjoiNGxYREdpSmhDTHV0c2JlYjZ6YVBv"
    "VFFkeDI4VFFiU2x0Z2pGdjNBeVIwZyJ9LCJ0eXAiOiJkYnNjK2p3dCJ9.eyJqdGkiOiI2YjBlMWVlYy5yQ"
    "2RGaktvSGFJdncuYU11ZTZUTFo0UkFGdjZnMF90dWJFWWIxODFncndCaFhmZWdvZDNCa0l2NCJ9.LAyuG-"
    "wpI6xMBQnWQx8lblwHs6bToFWaUGX5wvj2dA8QHTx_Mon1RUjXiipPUvTc4owJrdt21dfibpzXCsXECw"
)


def is_accepted(text: str, point: bytes | None = None) -> bool:
    """Whether a token is read and verifies, by its own key or by one that is given."""
    token = read_token(text)
    key = point or (None if token is None else token.point)
    return token is not None and key is not None and token.is_signed_by(key)


def forged(
    header: t.Any, payload: t.Any = None, key: Key = KEY, signature: str | None = None
) -> str:
    """Sign anything."""
    payload = {"jti": CHALLENGE} if payload is None else payload
    parts = [
        part if isinstance(part, str) else encode(json.dumps(part).encode())
        for part in (header, payload)
    ]
    signed = ".".join(parts)
    return f"{signed}.{key.sign(signed) if signature is None else signature}"


HEADER = {"alg": "ES256", "typ": "dbsc+jwt"}


def test_what_chromium_was_seen_to_send_is_accepted() -> None:
    token = read_token(SEEN)
    assert token is not None
    assert token.point is not None
    assert write_point(token.point) == "Av_JisDIa-t2Eg1N7NzWvaH0_lKnkT6QgabnmDtoJhIQ"
    assert token.challenge.startswith("6b0e1eec.rCdFjKoHaIvw.")
    assert token.is_signed_by(token.point)


def test_what_a_browser_signs_is_accepted_by_its_own_key_alone() -> None:
    assert is_accepted(REGISTRATION)
    assert is_accepted(REGISTRATION, POINT)
    assert is_accepted(REFRESH, POINT)
    assert not is_accepted(REFRESH)  # there is no key in it
    assert not is_accepted(REFRESH, OTHER_POINT)
    assert is_accepted(KEY.token(CHALLENGE, payload={"aud": "x", "iat": 1}), POINT)


def test_a_key_has_one_name() -> None:
    for key in (KEY, OTHER):
        point = read_point(key.identifier)
        assert point is not None
        assert write_point(point) == key.identifier
        token = read_token(key.token("c", is_registration=True))
        assert token is not None
        assert token.point == point


@pytest.mark.parametrize(
    "text",
    [
        *("", "A" * 43, "A" * 45, "A" * 44, "B" + "A" * 43, "A" * 43 + "!", "é" * 44),
        KEY.identifier + "=",
        KEY.identifier[:-1] + "\n",
        base64.urlsafe_b64encode(b"\4" + POINT[1:]).decode(),
    ],
    # The key is another one in each process.
    ids=range(10),
)
def test_what_is_no_name_of_a_key(text: str) -> None:
    assert read_point(text) is None


def test_a_point_beside_the_curve_verifies_nothing() -> None:
    # For half of all numbers there is no such point.
    beside = [b"\2" + bytes(31) + bytes([number]) for number in range(16)]
    assert not any(is_accepted(REFRESH, point) for point in beside)


def test_quotes_are_taken_and_left() -> None:
    assert unquote(f'"{REFRESH}"') == unquote(f" {REFRESH}\t") == REFRESH
    assert unquote('"') == '"'
    assert unquote('""') == ""


# Attacks


def without(name: str) -> dict[str, t.Any]:
    return {key: value for key, value in HEADER.items() if key != name}


def jwk(**changes: t.Any) -> dict[str, t.Any]:
    return {**HEADER, "jwk": {**KEY.jwk, **changes}}


def as_der() -> str:
    signed = REFRESH.rpartition(".")[0]
    der = KEY.private.sign(signed.encode(), ec.ECDSA(hashes.SHA256()))
    return f"{signed}.{encode(der)}"


def by_hmac() -> str:
    """Sign with the public key, taken for a secret: the best known trick of all."""
    import hmac

    signed = f"{encode({**HEADER, 'alg': 'HS256'})}.{encode({'jti': CHALLENGE})}"
    return f"{signed}.{encode(hmac.digest(POINT, signed.encode(), 'sha256'))}"


def by_rsa() -> str:
    from cryptography.hazmat.primitives.asymmetric import padding

    private = rsa.generate_private_key(65537, 2048)
    numbers = private.public_key().public_numbers()
    n = numbers.n.to_bytes(256, "big")
    key = {"kty": "RSA", "n": encode(n), "e": "AQAB"}
    head = {**HEADER, "alg": "RS256", "jwk": key}
    signed = f"{encode(head)}.{encode({'jti': CHALLENGE})}"
    signature = private.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
    return f"{signed}.{encode(signature)}"


#: Of tokens that only somebody makes who wants to get in.
ATTACKS: dict[str, t.Callable[[], str]] = {
    "no algorithm": lambda: forged({**HEADER, "alg": "none"}, signature=""),
    "no algorithm, signed": lambda: forged({**HEADER, "alg": "none"}),
    "algorithm None": lambda: forged({**HEADER, "alg": None}),
    "algorithm left out": lambda: forged(without("alg")),
    "algorithm in lower case": lambda: forged({**HEADER, "alg": "es256"}),
    "algorithm as a list": lambda: forged({**HEADER, "alg": ["ES256"]}),
    "another curve's algorithm": lambda: forged({**HEADER, "alg": "ES384"}),
    "HMAC with the public key": by_hmac,
    "RSA": by_rsa,
    "type left out": lambda: forged(without("typ")),
    "type of any token": lambda: forged({**HEADER, "typ": "JWT"}),
    "crit": lambda: forged({**HEADER, "crit": ["exp"], "exp": 1}),
    "payload not encoded": lambda: forged({**HEADER, "b64": False, "crit": ["b64"]}),
    "jwk of another type": lambda: forged(jwk(kty="oct", k="AAAA")),
    "jwk of another curve": lambda: forged(jwk(crv="P-384")),
    "jwk beside the curve": lambda: forged(jwk(y=KEY.jwk["x"])),
    "jwk of the point at infinity": lambda: forged(
        jwk(x=encode(bytes(32)), y=encode(bytes(32)))
    ),
    "jwk too short": lambda: forged(jwk(x=encode(bytes(31)))),
    "jwk too long": lambda: forged(jwk(x=encode(bytes(33)))),
    "jwk with padding": lambda: forged(jwk(x=KEY.jwk["x"] + "=")),
    "jwk with a private key": lambda: forged(jwk(d=KEY.jwk["x"])),
    "jwk of numbers": lambda: forged(jwk(x=1, y=2)),
    "jwk as a list": lambda: forged({**HEADER, "jwk": [KEY.jwk]}),
    "jwk as a text": lambda: forged({**HEADER, "jwk": json.dumps(KEY.jwk)}),
    "jwk None": lambda: forged({**HEADER, "jwk": None}),
    "jwk twice": lambda: forged(
        encode(
            json.dumps({**HEADER, "jwk": OTHER.jwk})[:-1]
            + f', "jwk": {json.dumps(KEY.jwk)}}}'
        )
    ),
    "jwk of somebody else": lambda: forged({**HEADER, "jwk": OTHER.jwk}),
    "jwk by a link": lambda: forged({**HEADER, "jku": "https://thief.test/keys"}),
    "signature of zeros": lambda: forged(HEADER, signature=encode(bytes(64))),
    "signature of ones": lambda: forged(HEADER, signature=encode(b"\xff" * 64)),
    "signature left out": lambda: REFRESH.rpartition(".")[0],
    "signature empty": lambda: REFRESH.rpartition(".")[0] + ".",
    "signature cut off": lambda: REFRESH[:-2],
    "signature in DER": as_der,
    "signature with padding": lambda: REFRESH + "==",
    "signature of another token": lambda: (
        REFRESH.rpartition(".")[0] + "." + KEY.token("another").rpartition(".")[2]
    ),
    "signed by another key": lambda: OTHER.token(CHALLENGE),
    "signed by another key, with the right jwk": lambda: forged(
        {**HEADER, "jwk": KEY.jwk}, key=OTHER
    ),
    "payload of another token": lambda: ".".join(
        [REFRESH.split(".")[0], encode({"jti": "another"}), REFRESH.split(".")[2]]
    ),
    "no challenge": lambda: forged(HEADER, {}),
    "challenge as a list": lambda: forged(HEADER, {"jti": [CHALLENGE]}),
    "payload as a list": lambda: forged(HEADER, [CHALLENGE]),
    "header as a list": lambda: forged([HEADER]),
    "header as a number": lambda: forged("MQ"),
    "not UTF-8": lambda: forged(encode(b'{"alg":"ES256\xff"}')),
    "deeper than Python goes": lambda: forged(encode(b"[" * 900)),
    "a number of a thousand digits": lambda: forged(encode(b"9" * 1000)),
    "four parts": lambda: REFRESH + "." + REFRESH.rpartition(".")[2],
    "two tokens": lambda: f"{REFRESH}, {REFRESH}",
    "huge": lambda: forged({**HEADER, "x": "y" * MAX_LENGTH}),
    "a megabyte": lambda: "A" * 2**20,
    "a megabyte of dots": lambda: "." * 2**20,
    "a NUL": lambda: REFRESH + "\0",
    "a line break": lambda: REFRESH + "\r\nSet-Cookie: a=b",
    "other digits": lambda: REFRESH.replace("e", "\N{FULLWIDTH LATIN SMALL LETTER E}"),
    "of all spellings of one signature": lambda: (
        REFRESH[:-1] + (ALPHABET[ALPHABET.index(REFRESH[-1]) ^ 1])
    ),
}


#: These are signed by the right key, and what they say of keys counts for nothing.
ONLY_TO_BE_REGISTERED = ("jwk by a link", "jwk of somebody else")


@pytest.mark.parametrize("name", ATTACKS)
def test_a_token_that_no_browser_makes_is_refused(
    name: str, request: pytest.FixtureRequest
) -> None:
    text = ATTACKS[name]()
    add_counts(request.node, "attacks on device-bound sessions", {"forged tokens": 1})
    assert not is_accepted(text)
    if name not in ONLY_TO_BE_REGISTERED:
        assert not is_accepted(text, POINT)


def test_a_key_in_a_proof_counts_for_nothing() -> None:
    """Who signs with a key of their own, and sends it along, has not the other one."""
    text = OTHER.token(CHALLENGE, is_registration=True)
    assert is_accepted(text)  # to register it
    assert not is_accepted(text, POINT)  # to prove another one


@without_deadline
@given(text=st.text() | st.from_regex(r"[\w-]*\.[\w-]*\.[\w-]*", fullmatch=True))
def test_nothing_that_comes_raises(text: str) -> None:
    token = read_token(text)
    assert token is None or not token.is_signed_by(POINT)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["alg", "typ", "jwk", "kty", "crv", "x", "y", "jti", "z"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@without_deadline
@given(
    header=ANY_JSON,
    payload=ANY_JSON,
    is_right=st.booleans(),
    key=st.sampled_from([KEY, OTHER]),
)
def test_only_what_its_key_has_signed_is_accepted(
    header: t.Any, payload: t.Any, is_right: bool, key: Key
) -> None:
    if is_right and isinstance(header, dict) and isinstance(payload, dict):
        header, payload = {**header, **HEADER}, {**payload, "jti": CHALLENGE}
    token = read_token(forged(header, payload, key))
    if token is not None:
        assert header["alg"] == "ES256"
        assert header["typ"] == "dbsc+jwt"
        assert token.challenge == payload["jti"]
        assert token.is_signed_by(POINT) is (key is KEY)


@without_deadline
@given(
    place=st.integers(0, len(REGISTRATION) - 1),
    letter=st.sampled_from(ALPHABET + ".= \0"),
)
def test_no_letter_of_a_token_can_be_changed(place: int, letter: str) -> None:
    changed = REGISTRATION[:place] + letter + REGISTRATION[place + 1 :]
    assert is_accepted(changed, POINT) is (changed == REGISTRATION)


@without_deadline
@given(first=st.integers(0, 400), last=st.integers(0, 400))
def test_no_part_of_a_token_can_be_left_out(first: int, last: int) -> None:
    cut = REGISTRATION[:first] + REGISTRATION[last:]
    assert is_accepted(cut, POINT) is (cut == REGISTRATION)


# Challenges and proofs

SIGNER = CookieSigner(["a secret"])
NOW = 1_800_000_000.0


def is_proof(signer: CookieSigner, proof: str, identifier: str, now: float) -> bool:
    return 0 < end_of_proof(signer, proof, identifier) >= now


def test_a_challenge_is_for_one_thing_and_for_some_minutes() -> None:
    challenge = make_challenge(SIGNER, "this", NOW)
    assert challenge != make_challenge(SIGNER, "this", NOW)

    def is_taken(now: float = NOW, subject: str = "this") -> bool:
        return is_challenge(SIGNER, challenge, subject, now, 300)

    assert is_taken()
    assert is_taken(NOW + 300)
    assert is_taken(NOW - 60)  # by a server whose clock is behind
    assert is_taken(NOW + 360)  # or ahead
    assert not is_taken(NOW - 61)
    assert not is_taken(NOW + 361)
    assert not is_taken(subject="that")


def test_a_proof_is_of_one_key_and_until_one_moment() -> None:
    proof = make_proof(SIGNER, "A", NOW)
    assert is_proof(SIGNER, proof, "A", NOW)
    assert not is_proof(SIGNER, proof, "A", NOW + 1)
    assert not is_proof(SIGNER, proof, "B", NOW)
    assert len(make_proof(SIGNER, KEY.identifier, NOW)) == 52


def test_no_seal_stands_for_another() -> None:
    challenge = make_challenge(SIGNER, "A", NOW)
    proof = make_proof(SIGNER, "A", NOW)
    assert not is_proof(SIGNER, challenge, "A", 0)
    assert not is_challenge(SIGNER, proof, "A", NOW, 300)
    # A proof that is taken apart otherwise.
    made_at, nonce, seal = challenge.split(".")
    assert not is_proof(SIGNER, f"{made_at}.{seal}", f"{nonce}.A", 0)
    assert not is_proof(SIGNER, SIGNER.attest("A"), "A", 0)


def test_older_secrets_are_good_and_others_are_not() -> None:
    newer = CookieSigner(["newer", "a secret"])
    challenge, proof = make_challenge(SIGNER, "A", NOW), make_proof(SIGNER, "A", NOW)
    assert is_challenge(newer, challenge, "A", NOW, 300)
    assert is_proof(newer, proof, "A", NOW)
    other = CookieSigner(["newer"])
    assert not is_challenge(other, challenge, "A", NOW, 300)
    assert not is_proof(other, proof, "A", NOW)


@without_deadline
@given(text=st.text() | st.from_regex(r"[0-9a-f]{8}(\.[\w-]{12})?\.[\w-]{43}"))
def test_no_seal_is_guessed(text: str) -> None:
    assert not is_challenge(SIGNER, text, "A", NOW, 1e12)
    assert not is_proof(SIGNER, text, "A", 0)


@without_deadline
@given(place=st.integers(0, 51), letter=st.sampled_from(ALPHABET + ".\0"))
def test_no_letter_of_a_proof_can_be_changed(place: int, letter: str) -> None:
    proof = make_proof(SIGNER, KEY.identifier, NOW)
    changed = proof[:place] + letter + proof[place + 1 :]
    assert is_proof(SIGNER, changed, KEY.identifier, 0) is (changed == proof)
