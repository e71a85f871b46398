from __future__ import annotations

import pytest

from flask_serversession.cli.browsers import browser_name

GECKO = "Mozilla/5.0 ({}) Gecko/20100101 Firefox/133.0"
BLINK = "Mozilla/5.0 ({}) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0"
WEBKIT = "Mozilla/5.0 ({}) AppleWebKit/605.1.15 (KHTML, like Gecko)"
WINDOWS = "Windows NT 10.0; Win64; x64"
MAC = "Macintosh; Intel Mac OS X 10_15_7"
IPHONE = "iPhone; CPU iPhone OS 18_1 like Mac OS X"
ANDROID = "Linux; Android 10; K"


@pytest.mark.parametrize(
    ("user_agent", "name"),
    [
        (
            GECKO.format("Windows NT 10.0; Win64; x64; rv:133.0"),
            "Firefox 133 on Windows",
        ),
        (GECKO.format("X11; Linux x86_64; rv:133.0"), "Firefox 133 on Linux"),
        (GECKO.format("Android 15; Mobile; rv:133.0"), "Firefox 133 on Android"),
        (f"{WEBKIT.format(IPHONE)} FxiOS/133.0 Safari/605", "Firefox 133 on iPhone"),
        (f"{BLINK.format(WINDOWS)} Safari/537.36", "Chrome 131 on Windows"),
        (f"{BLINK.format(ANDROID)} Mobile Safari/537.36", "Chrome 131 on Android"),
        (f"{BLINK.format('X11; CrOS x86_64')} Safari/537.36", "Chrome 131 on ChromeOS"),
        (f"{BLINK.format(WINDOWS)} Safari/537.36 Edg/131.0", "Edge 131 on Windows"),
        (f"{BLINK.format(MAC)} Safari/537.36 OPR/116.0", "Opera 116 on macOS"),
        (f"{BLINK.format(MAC)} Vivaldi/7.0", "Vivaldi 7 on macOS"),
        (
            f"{BLINK.format(ANDROID)} SamsungBrowser/27.0",
            "Samsung Internet 27 on Android",
        ),
        (f"{WEBKIT.format(MAC)} Version/18.1 Safari/605", "Safari 18 on macOS"),
        (f"{WEBKIT.format(IPHONE)} Version/18.1 Safari/6", "Safari 18 on iPhone"),
        (f"{WEBKIT.format('iPad; CPU OS 18')} CriOS/131.0 S", "Chrome 131 on iPad"),
        (
            "Mozilla/5.0 (Windows NT 10.0; Trident/7.0; rv:11.0) like Gecko",
            "IE 11 on Windows",
        ),
        ("Mozilla/4.0 (compatible; MSIE 8.0; Windows NT 6.1)", "IE 8 on Windows"),
        ("curl/8.5.0", "curl 8"),
        ("python-requests/2.32.3", "python-requests 2"),
        ("Mozilla/5.0 (compatible; Googlebot/2.1; +http://g.co)", "Googlebot 2"),
        ("Mozilla/5.0 (X11)", ""),
        ("Something odd", ""),
        ("", ""),
        ("-", ""),
        ("\x1b[2J/1", ""),
        ("cu\x1brl/8", ""),
        ("cürl/8", ""),
        ("Firefox/\u0661\u0662", ""),
        ("Firefox/" + "9" * 100, "Firefox 9999"),
        ("x" * 1000 + "/1", ""),
    ],
)
def test_a_browser_is_called_what_people_call_it(user_agent: str, name: str) -> None:
    assert browser_name(user_agent) == name
