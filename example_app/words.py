"""What people read instead of numbers and codes."""

from __future__ import annotations

import re
import typing as t
from datetime import datetime
from datetime import timedelta
from datetime import timezone

from flask import Blueprint

#: Registers the filters for templates.
blueprint = Blueprint("words", __name__)


class Device(t.NamedTuple):
    """What a browser says that it is, and that it runs on. Anybody can say anything."""

    browser: str
    system: str = ""
    is_phone: bool = False

    def __str__(self) -> str:
        return f"{self.browser}, {self.system}" if self.system else self.browser


# The first match counts: browsers also name those that they want to be taken for.
_BROWSERS = (
    (r"\bEdg(?:e|A|iOS)?/", "Edge"),
    (r"\bOP(?:R|T)/|\bOPiOS/|\bOpera\b", "Opera"),
    (r"\bVivaldi/", "Vivaldi"),
    (r"\bSamsungBrowser/", "Samsung Internet"),
    (r"\bYaBrowser/", "Yandex Browser"),
    (r"\bDuckDuckGo/|\bDdg/", "DuckDuckGo"),
    (r"\b(?:Firefox|FxiOS)/", "Firefox"),
    (r"\bHeadlessChrome/", "Chrome without a window"),
    (r"\bChromium/", "Chromium"),
    (r"\b(?:Chrome|CriOS)/", "Chrome"),
    (r"\bVersion/.+\bSafari/", "Safari"),
    (r"\bTrident/|\bMSIE ", "Internet Explorer"),
)
_SYSTEMS = (
    (r"\biPhone\b|\biPod\b", "iPhone"),
    (r"\biPad\b", "iPad"),
    (r"\bAndroid\b", "Android"),
    (r"\bWindows\b", "Windows"),
    (r"\bCrOS\b", "ChromeOS"),
    (r"\bMac OS X\b|\bMacintosh\b", "macOS"),
    (r"\bLinux\b|\bX11\b", "Linux"),
)
_PHONES = {"iPhone", "iPad", "Android"}


@blueprint.app_template_filter("device")
def device(user_agent: str) -> Device:
    """Read what a browser sends with each request."""
    browser, system = _first(_BROWSERS, user_agent), _first(_SYSTEMS, user_agent)

    # Programs begin with their name: "curl/8.5.0".
    if not browser and (name := re.match(r"([\w.-]{1,30})/\d", user_agent)):
        browser = "" if name[1] == "Mozilla" else name[1]

    return Device(browser or "Unknown browser", system, system in _PHONES)


def _first(names: t.Iterable[tuple[str, str]], text: str) -> str:
    return next((name for pattern, name in names if re.search(pattern, text)), "")


@blueprint.app_template_filter("ago")
def ago(moment: datetime) -> str:
    """Say how long ago something was."""
    passed = datetime.now(timezone.utc) - moment
    # What was seen is recorded once a minute; an exact answer would be a wrong one.
    return "just now" if passed < timedelta(minutes=2) else f"{in_words(passed)} ago"


@blueprint.app_template_filter("date")
def date(moment: datetime) -> str:
    """Write a moment, to the minute."""
    return f"{moment.day} {moment:%b %Y, %H:%M} UTC"


def in_words(duration: timedelta) -> str:
    """Write a duration in its largest unit."""
    # To the minute: a second less than a day is a day to whoever has just set it.
    minutes = round(duration.total_seconds() / 60)

    for unit, size in (("day", 24 * 60), ("hour", 60), ("minute", 1)):
        if (number := minutes // size) > 0:
            return f"{number} {unit}{'s' if number > 1 else ''}"

    return "less than a minute"
