"""Posts alerts to a webhook, signed. What the receiver answers is not read, but for its status."""

import hashlib
import hmac
import ssl
from urllib.parse import urlsplit

import anyio
import httpx
from pydantic import SecretStr

from dionysus_sync_mcp.domain.errors import Unavailable
from dionysus_sync_mcp.settings import LOOPBACK

WHERE = "the alert webhook"
DEADLINE_SECONDS = 5.0
HINT = "Check DIONYSUS_ALERT_WEBHOOK_URL and MEMORY_WEBHOOK_TOKEN, and that the receiver runs."
HINT_ENVIRONMENT = "Check DIONYSUS_ALERT_WEBHOOK_URL, and ALL_PROXY, HTTPS_PROXY and SSL_CERT_FILE of this program."
# All that httpx raises, but for wrong use of a stream.
_CLIENT_ERRORS = (httpx.HTTPError, httpx.InvalidURL, httpx.CookieConflict, httpx.StreamError, ssl.SSLError)
# What it lets through of a proxy that it cannot use, of certificates that are not there, of a host that is no name.
_ENVIRONMENT_ERRORS = (ImportError, ValueError, OSError)


class Webhook:
    """Implements `AlertSink`. No connection is made before the first post, and none is kept after it.

    Args:
        url: May hold a secret in any of its parts, so no message quotes any of it.
        token: The key of the signature.
    """

    def __init__(self, url: SecretStr, token: SecretStr) -> None:
        self._url = url
        self._token = token

    async def post(self, alert_id: str, body: bytes) -> None:
        """See `AlertSink.post`; bounded by `DEADLINE_SECONDS` whatever the receiver does."""
        headers = {
            "Content-Type": "application/json",
            "X-Delivery-Id": alert_id,
            "X-Signature": signature(body, self._token.get_secret_value()),
        }
        try:
            with anyio.fail_after(DEADLINE_SECONDS):
                status = await self._status(body, headers)
        except TimeoutError:
            raise Unavailable(f"no answer within {DEADLINE_SECONDS:g} s", where=WHERE, hint=HINT) from None
        except _CLIENT_ERRORS as error:
            # The library's own message may quote the URL.
            raise Unavailable(f"it cannot be reached ({type(error).__name__})", where=WHERE, hint=HINT) from None
        except _ENVIRONMENT_ERRORS as error:
            what = f"it cannot be called from here ({type(error).__name__})"
            raise Unavailable(what, where=WHERE, hint=HINT_ENVIRONMENT) from None
        if not 200 <= status < 300:
            raise Unavailable(f"answer {status}", where=WHERE, hint=HINT)

    async def _status(self, body: bytes, headers: dict[str, str]) -> int:
        url = self._url.get_secret_value()
        parts = urlsplit(url)
        client = httpx.AsyncClient(
            # A proxy cannot reach our loopback, and plain HTTP needs no certificates.
            trust_env=parts.hostname not in LOOPBACK,
            verify=parts.scheme == "https",
            follow_redirects=False,
            timeout=DEADLINE_SECONDS,
        )
        async with client, client.stream("POST", url, content=body, headers=headers) as response:
            return response.status_code


def signature(body: bytes, token: str) -> str:
    """The value of `X-Signature`: HMAC-SHA256 of the body as it is sent, in hex."""
    return f"sha256={hmac.new(token.encode(), body, hashlib.sha256).hexdigest()}"
