"""The formats of strings: what each looks like, as a regular expression."""

from __future__ import annotations

_DATE = r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
_TIME = (
    r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
)
_BYTE = r"(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = rf"{_BYTE}(\.{_BYTE}){{3}}"
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HEX = "[0-9A-Fa-f]"
_WORD = f"{_HEX}{{1,4}}"
# RFC 4291: eight words, or fewer with one run of zeros left out.
_IPV6 = "|".join(
    [
        f"({_WORD}:){{7}}{_WORD}",
        f"({_WORD}:){{1,7}}:",
        *(f"({_WORD}:){{1,{7 - n}}}(:{_WORD}){{1,{n}}}" for n in range(1, 7)),
        f":(:{_WORD}){{1,7}}",
        "::",
    ]
)
_IPV6 = f"({_IPV6})"
_BITS_32, _BITS_128 = "([0-9]|[12][0-9]|3[0-2])", "([0-9]|[1-9][0-9]|1[01][0-9]|12[0-8])"
_BASE64 = "[A-Za-z0-9+\\/]"
_BASE64URL = "[A-Za-z0-9_-]"
STANDARD = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": r"P([0-9]+W|[0-9]+D|[0-9]+M([0-9]+D)?|[0-9]+Y([0-9]+M([0-9]+D)?)?"
    r"|([0-9]+D)?T([0-9]+H([0-9]+M)?([0-9]+S)?|[0-9]+M([0-9]+S)?|[0-9]+S))",
    "email": rf"[A-Za-z0-9_+-]+(\.[A-Za-z0-9_+-]+)*@{_LABEL}(\.{_LABEL})+",
    "hostname": rf"{_LABEL}(\.{_LABEL})*",
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "uri": r"[A-Za-z][A-Za-z0-9+.-]*:(\/\/)?[A-Za-z0-9._~:\/?#@!$&'()*+,;=%-]+",
    "uuid": f"{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}",
}
"""The formats of JSON schema that llguidance knows, too, and enforces in JSON."""

_UUIDS = {
    f"uuid{n}": f"{_HEX}{{8}}-{_HEX}{{4}}-{n}{_HEX}{{3}}-[89ABab]{_HEX}{{3}}-{_HEX}{{12}}"
    for n in range(1, 9)
}
OTHERS = {
    **_UUIDS,
    "ipv4network": rf"{_IPV4}(\/{_BITS_32})?",
    "ipv4interface": rf"{_IPV4}(\/{_BITS_32})?",
    "ipv6network": rf"{_IPV6}(\/{_BITS_128})?",
    "ipv6interface": rf"{_IPV6}(\/{_BITS_128})?",
    "ipvanyaddress": f"({_IPV4}|{_IPV6})",
    "ipvanynetwork": rf"({_IPV4}(\/{_BITS_32})?|{_IPV6}(\/{_BITS_128})?)",
    "ipvanyinterface": rf"({_IPV4}(\/{_BITS_32})?|{_IPV6}(\/{_BITS_128})?)",
    "byte": f"({_BASE64}{{4}})*({_BASE64}{{2}}==|{_BASE64}{{3}}=)?",
    "base64": f"({_BASE64}{{4}})*({_BASE64}{{2}}==|{_BASE64}{{3}}=)?",
    "base64url": f"({_BASE64URL}{{4}})*({_BASE64URL}{{2}}(==)?|{_BASE64URL}{{3}}=?)?",
    "json-pointer": "(\\/([^\\/~]|~[01])*)*",
}
"""The formats of pydantic and OpenAPI that we enforce as patterns."""

FORMATS = {**STANDARD, **OTHERS}
"""Every format that is enforced; any other is a note, as JSON schema has it."""
