"""Whether a service answers; a container's health check.

python -m fedssl.deploy.health URL AUTHORITY
"""

import ssl
import sys
import urllib.error
import urllib.request


def answers(url: str, authority: str) -> bool:
    """Say whether a URL answers 200 within five seconds.

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
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


if __name__ == "__main__":
    sys.exit(0 if answers(sys.argv[1], sys.argv[2]) else 1)
