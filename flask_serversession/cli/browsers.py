"""What a browser is called that sends a certain user agent. Anybody can send any."""

from __future__ import annotations

import re

_VERSION = r"/(?P<version>\d{1,4})"
# The first match counts: browsers also name those that they want to be taken for.
_BROWSERS = (
    (rf"\bEdg(?:e|A|iOS)?{_VERSION}", "Edge"),
    (rf"\b(?:OPR|OPT|OPiOS|Opera){_VERSION}", "Opera"),
    (rf"\bVivaldi{_VERSION}", "Vivaldi"),
    (rf"\bSamsungBrowser{_VERSION}", "Samsung Internet"),
    (rf"\bYaBrowser{_VERSION}", "Yandex Browser"),
    (rf"\b(?:DuckDuckGo|Ddg){_VERSION}", "DuckDuckGo"),
    (rf"\b(?:Firefox|FxiOS){_VERSION}", "Firefox"),
    (rf"\bHeadlessChrome{_VERSION}", "Headless Chrome"),
    (rf"\bChromium{_VERSION}", "Chromium"),
    (rf"\b(?:Chrome|CriOS){_VERSION}", "Chrome"),
    (rf"\bVersion{_VERSION}.+\bSafari/", "Safari"),
    (r"\bMSIE (?P<version>\d{1,2})|\bTrident/.+\brv:(?P<more>\d{1,2})", "IE"),
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
# Programs begin with their name, as "curl/8.5.0"; robots put it into the comment.
_PROGRAM = re.compile(
    rf"(?:Mozilla/5\.0 \(compatible; )?(?P<name>[A-Za-z][\w.-]{{0,29}}){_VERSION}",
    re.ASCII,
)


def browser_name(user_agent: str) -> str:
    """Return a name such as "Firefox 133 on Windows"; empty for one that has none.

    Holds no character that a terminal obeys.
    """
    for pattern, name in _BROWSERS:
        if match := re.search(pattern, user_agent, re.ASCII):
            text = f"{name} {match['version'] or match.groupdict().get('more')}"
            break
    else:
        program = _PROGRAM.match(user_agent)
        if program is None or program["name"] == "Mozilla":
            return ""
        text = f"{program['name']} {program['version']}"
    system = next((name for part, name in _SYSTEMS if re.search(part, user_agent)), "")
    return f"{text} on {system}" if system else text
