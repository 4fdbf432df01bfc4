"""Check whether a service answers, and how far its clock is from this host's; containers use it as health check.

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
"""Clocks that differ by more seconds than this are reported. Flower refuses a client that is 5 s ahead (1.41)."""

EXPIRED, NOT_YET_VALID = 10, 9
"""OpenSSL's codes for a certificate that has expired, or that is not valid yet."""


@dataclass(frozen=True)
class Answer:
    """A service's answer to a health check.

    Args:
        is_well: Whether the service answered 200.
        seconds_ahead: Seconds by which this host's clock is ahead of the service's, correct to half a second; None: the
            answer held no time.
        problem: Why the service gave no answer, or another one than 200; empty if it is well.
        is_distrusted: Whether the service's certificate is not of the authority, or not for this address.
    """

    is_well: bool
    seconds_ahead: float | None = None
    problem: str = ""
    is_distrusted: bool = False

    @property
    def clocks(self) -> str:
        """A clause on the difference of the clocks; empty if the difference does no harm."""
        if self.seconds_ahead is None or abs(self.seconds_ahead) <= CLOCK_DIFFERENCE:
            return ""
        where = "ahead of" if self.seconds_ahead > 0 else "behind"
        return f"this host's clock is {abs(self.seconds_ahead):.0f} s {where} the server's"


def check_health(url: str, authority: str) -> Answer:
    """Ask a service whether it is well, and wait five seconds at most.

    Args:
        url: The service's URL for health checks, ``https:`` or ``http:``.
        authority: File of the only certificate authority to trust.
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
        if isinstance(reason, ssl.SSLCertVerificationError):
            return Answer(False, problem=reason.verify_message, is_distrusted=True)
        return Answer(False, problem=str(reason))


def is_service_well(url: str, authority: str) -> bool:
    """Return whether a service is well."""
    return check_health(url, authority).is_well


def _seconds_ahead(date: str | None) -> float | None:
    try:
        there = parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        return None
    return time.time() - (there + 0.5)  # a date has whole seconds


if __name__ == "__main__":
    sys.exit(0 if is_service_well(sys.argv[1], sys.argv[2]) else 1)
