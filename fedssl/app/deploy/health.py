"""Whether a service answers, and what its clock says; a container's health check.

python -m fedssl.app.deploy.health URL AUTHORITY
"""

import ssl
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

CLOCK_DIFFERENCE = 4.0
"""Clocks that differ by more seconds than this are named. Flower refuses a client that is 5 s ahead (1.41)."""

EXPIRED, NOT_YET_VALID = 10, 9
"""OpenSSL's codes of these two faults of a certificate."""


@dataclass(frozen=True)
class Answer:
    """What came of asking a service.

    Args:
        is_well: It answered 200.
        seconds_ahead: By how much our clock is ahead of the service's, known to half a second; None: it did not say.
        problem: Why there was no answer; empty if there was one.
    """

    is_well: bool
    seconds_ahead: float | None = None
    problem: str = ""

    @property
    def clocks(self) -> str:
        """Say by how much the clocks differ; empty if that does no harm."""
        if self.seconds_ahead is None or abs(self.seconds_ahead) <= CLOCK_DIFFERENCE:
            return ""
        where = "ahead of" if self.seconds_ahead > 0 else "behind"
        return f"this host's clock is {abs(self.seconds_ahead):.0f} s {where} the server's"


def look(url: str, authority: str) -> Answer:
    """Ask a service whether it is well, for five seconds at most.

    Args:
        url: ``https:`` or ``http:``.
        authority: File of the certificate authority that is trusted, and no other.
    """
    try:
        context = ssl.create_default_context(cafile=authority) if url.startswith("https:") else None
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        with opener.open(url, timeout=5) as answer:
            return Answer(answer.status == 200, _seconds_ahead(answer.headers.get("date")))
    except urllib.error.HTTPError as error:
        return Answer(False, _seconds_ahead(error.headers.get("date")), f"answers {error.code}")
    except OSError as error:
        reason = getattr(error, "reason", error)
        code = getattr(reason, "verify_code", None)
        if code == EXPIRED:
            return Answer(False, problem="the server's certificate has expired")
        if code == NOT_YET_VALID:
            return Answer(
                False, problem="the server's certificate is not valid yet by this host's clock"
            )
        return Answer(False, problem=str(reason))


def answers(url: str, authority: str) -> bool:
    """Say whether a service is well."""
    return look(url, authority).is_well


def _seconds_ahead(date: str | None) -> float | None:
    try:
        there = parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        return None
    return time.time() - (there + 0.5)  # a date has whole seconds


if __name__ == "__main__":
    sys.exit(0 if answers(sys.argv[1], sys.argv[2]) else 1)
