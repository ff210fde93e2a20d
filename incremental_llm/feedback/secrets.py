"""Keys, tokens and passwords in a text: by the prefixes that their issuers give them, or beside a word that names one.

The prefixes are those that the issuers document for secret scanning; none occurs in prose.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_ISSUED = re.compile(
    r"""(?<![A-Za-z0-9_-])(?:
      (?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}                  # AWS access key ids
    | gh[pousr]_[A-Za-z0-9]{36,255} | github_pat_\w{22,255}  # GitHub
    | glpat-[\w-]{20,}                                     # GitLab
    | xox[abeoprs]-[A-Za-z0-9-]{10,}                       # Slack
    | (?:sk|rk|pk|whsec)_(?:live|test)?_?[A-Za-z0-9]{16,}  # Stripe
    | sk-(?:ant-|proj-|svcacct-)?[\w-]{20,}                # OpenAI, Anthropic
    | hf_[A-Za-z0-9]{30,}                                  # Hugging Face
    | AIza[\w-]{35} | ya29\.[\w-]{20,} | GOCSPX-[\w-]{20,} # Google
    | npm_[A-Za-z0-9]{36} | pypi-[\w-]{50,}                # package indexes
    | SG\.[\w-]{16,}\.[\w-]{16,}                           # SendGrid
    | (?:AC|SK)[0-9a-f]{32}                                # Twilio
    | dop_v1_[0-9a-f]{64} | shp(?:at|ss|ca|pa)_[0-9a-fA-F]{32} | sq0(?:atp|csp)-[\w-]{22,}
    | eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}                # JSON web tokens
    )(?![A-Za-z0-9_])""",
    re.X,
)
_PRIVATE_KEY = re.compile(
    r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----.*?(?:-----END (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----|\Z)",
    re.S,
)
_IN_URL = re.compile(r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@]{1,80}:(?P<secret>[^\s/@]{3,200})@", re.I)
_BEARER = re.compile(r"\b(?:bearer|basic)\s+(?P<secret>[A-Za-z0-9+/._~-]{12,}={0,2})", re.I)
_NAMED = re.compile(
    r"\b(?:pass(?:word|wd|phrase|code)|pwd|(?:api|access|secret|private|auth|client)[ _-]?(?:key|token|secret)"
    r"|secret|token)"
    r"[\"']?\s*(?:[:=]|\bis\b)\s*[\"'`]?(?P<secret>[^\s\"'`,;()<>\[\]{}]{6,200})",
    re.I,
)
_WORD = re.compile(r"passw|passc|passp|pwd|key|token|secret", re.I)


def secret_spans(text: str) -> Iterator[tuple[int, int]]:
    """Where secrets stand; of one that is named, only the secret itself."""
    yield from (match.span() for match in _ISSUED.finditer(text))
    if "PRIVATE KEY" in text:
        yield from (match.span() for match in _PRIVATE_KEY.finditer(text))
    if "://" in text:
        yield from (match.span("secret") for match in _IN_URL.finditer(text))
    if "earer" in text or "asic" in text or "BEARER" in text:
        yield from (match.span("secret") for match in _BEARER.finditer(text) if _is_random(match["secret"]))
    if _WORD.search(text):
        for match in _NAMED.finditer(text):
            secret = match["secret"].rstrip(".!?:")
            if _is_random(secret):
                yield match.start("secret"), match.start("secret") + len(secret)


def _is_random(text: str) -> bool:
    """Whether a value is no word: letters with digits or signs among them, or with capitals in its middle."""
    mixed = any(c.isdigit() or c in "!$%^&*#@+/~" for c in text) or (
        text[1:] != text[1:].lower() and not text.isupper()
    )
    return len(text) >= 6 and mixed and any(c.isalpha() for c in text)
