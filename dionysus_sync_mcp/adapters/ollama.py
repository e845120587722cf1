"""Vectors from Ollama, through `/api/embed`; no connection is made before the first call."""

import time
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

import anyio
import httpx

from dionysus_sync_mcp.domain.embedding import family_of, pooled, prepared_pieces, prepared_query
from dionysus_sync_mcp.domain.errors import AccessRefused, DionysusError, Refused, TooLarge, Unavailable
from dionysus_sync_mcp.domain.memory import broken_vector_rule
from dionysus_sync_mcp.engine.ports.shared import Health
from dionysus_sync_mcp.settings import LOOPBACK

WHERE = "Ollama"
CONNECT_SECONDS = 2.0
# The first call waits for the model to be loaded.
FIRST_READ_SECONDS = 120.0
READ_SECONDS = 30.0
LOOK_SECONDS = 3.0
# Ollama embeds one text after the other: a larger request saves nothing, makes a question wait behind it, and comes
# near the time limit on a busy machine, where one long piece was seen to take 6 s.
REQUEST_TEXTS = 16
REQUEST_CHARACTERS = 3_000

# All that httpx raises, but for wrong use of a stream.
CLIENT_ERRORS = (httpx.HTTPError, httpx.InvalidURL, httpx.CookieConflict, httpx.StreamError)
_OVERLOADED = frozenset({408, 425, 429, 499, 502, 503, 504})
_ERROR_LENGTH = 200


class OllamaEmbedder:
    """An `Embedder` and a `Service`.

    A text that is too long for the model is split and its pieces' vectors are pooled; of a text of more than
    `MOST_PIECES` pieces the beginning counts.
    """

    def __init__(self, url: str, model: str, dimensions: int, http: httpx.AsyncClient | None = None) -> None:
        """Keep the settings; `http` is closed with this object.

        Args:
            url: Without a slash at the end.
            dimensions: Length of the vectors; others are refused.
        """
        self._url = url
        self._model = model
        self._dimensions = dimensions
        self._family = family_of(model)
        self._http = http or _client(url)
        self._read_seconds = FIRST_READ_SECONDS
        self._failed = False
        self._asking = 0
        self._answered = anyio.Event()

    @property
    def model(self) -> str:
        """The model's name, as it is set."""
        return self._model

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def embed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector for each text, finite, not zero, of the set length.

        Raises:
            Refused: For one bad text or for all; the data model's message where a vector breaks its rule.
            Unavailable: Ollama cannot be reached, is overloaded, or takes too long.
            AccessRefused: The model is not there, or the URL is not Ollama's.
        """
        texts_pieces = [prepared_pieces(text, self._family) for text in texts]
        vectors: list[list[float]] = []
        for request in requests([piece for pieces in texts_pieces for piece in pieces]):
            await self._let_questions_pass()
            vectors += await self._embed(request)
        unread = iter(vectors)
        return [self._one([next(unread) for _ in pieces], [len(piece) for piece in pieces]) for pieces in texts_pieces]

    async def embed_query(self, text: str) -> list[float]:
        """The vector of a question, before documents that are still to be sent; raises as `embed_documents` does."""
        self._asking += 1
        try:
            return (await self._embed([prepared_query(text, self._family)]))[0]
        finally:
            self._asking -= 1
            self._answered.set()
            self._answered = anyio.Event()

    async def health(self, timeout: float) -> Health:
        """One look, never raising, within `timeout` seconds."""
        started = time.perf_counter()
        try:
            with anyio.fail_after(timeout):
                version = _field(await self._get("/api/version"), "version")
                latency_ms = round((time.perf_counter() - started) * 1000, 1)
                models = _field(await self._get("/api/tags"), "models")
        except TimeoutError:
            return Health("ollama", error=f"no answer within {timeout:g} s", hint=self._start_hint())
        except DionysusError as error:
            return Health("ollama", error=error.what, hint=error.hint, refused=isinstance(error, AccessRefused))
        if has_model(models, self._model):
            return Health("ollama", version=str(version), latency_ms=latency_ms)
        missing = f"the model {self._model} is not there: memories get no vectors, search is by words only"
        return Health(
            "ollama", version=str(version), latency_ms=latency_ms, hint=_pull_hint(self._model), degraded=(missing,)
        )

    async def _let_questions_pass(self) -> None:
        while self._asking:
            await self._answered.wait()

    def _one(self, vectors: list[list[float]], lengths: list[int]) -> list[float]:
        return vectors[0] if len(vectors) == 1 else self._checked(pooled(vectors, lengths))

    async def _embed(self, texts: list[str]) -> list[list[float]]:
        body = {"model": self._model, "input": texts, "truncate": True}
        response = await self._post("/api/embed", body)
        if response.status_code == httpx.codes.INTERNAL_SERVER_ERROR:
            # The process that runs the model may have died; Ollama starts another one for the next request.
            response = await self._post("/api/embed", body)
        reply = self._read(response)
        self._read_seconds = READ_SECONDS
        return [self._checked(vector) for vector in vectors_of(reply, len(texts))]

    def _checked(self, vector: list[float]) -> list[float]:
        broken = broken_vector_rule(vector, self._dimensions)
        if broken:
            raise Refused(broken, where=WHERE)
        return vector

    async def _post(self, path: str, body: dict[str, object]) -> httpx.Response:
        if self._failed:
            # A lost peer keeps a request for ever, even if it comes back: the long wait is for one that is there.
            await self._get("/api/version", LOOK_SECONDS)
        timeout = httpx.Timeout(self._read_seconds, connect=CONNECT_SECONDS)
        try:
            response = await self._http.post(self._url + path, json=body, timeout=timeout)
        except CLIENT_ERRORS as error:
            # Started again, it has to load the model again.
            self._read_seconds, self._failed = FIRST_READ_SECONDS, True
            raise client_error(error, self._start_hint()) from error
        self._failed = False
        return response

    async def _get(self, path: str, seconds: float = READ_SECONDS) -> object:
        try:
            # Only looks use this: closing tells the server, and the client, not to keep a connection that may die.
            headers = {"Connection": "close"}
            return self._read(await self._http.get(self._url + path, headers=headers, timeout=seconds))
        except CLIENT_ERRORS as error:
            raise client_error(error, self._start_hint()) from error

    def _read(self, response: httpx.Response) -> object:
        if response.status_code != httpx.codes.OK:
            raise status_error(response.status_code, _reason(response), self._model)
        try:
            reply: object = response.json()
        except ValueError as error:
            raise Refused("the reply is not JSON", where=WHERE, hint="Does OLLAMA_URL name an Ollama?") from error
        return reply

    def _start_hint(self) -> str:
        parts = urlsplit(self._url)
        return f"Is Ollama running on {parts.hostname}, port {parts.port or parts.scheme}? Else set OLLAMA_URL."


def requests(texts: Sequence[str]) -> Iterator[list[str]]:
    """The texts in order, in requests of at most `REQUEST_TEXTS` and `REQUEST_CHARACTERS`, at least one in each."""
    request: list[str] = []
    size = 0
    for text in texts:
        if request and (len(request) == REQUEST_TEXTS or size + len(text) > REQUEST_CHARACTERS):
            yield request
            request, size = [], 0
        request.append(text)
        size += len(text)
    if request:
        yield request


def vectors_of(reply: object, count: int) -> list[list[float]]:
    """The vectors in a reply of `/api/embed`.

    Raises:
        Refused: The reply is not `count` lists of numbers.
    """
    vectors = _field(reply, "embeddings")
    if not isinstance(vectors, list) or len(vectors) != count or not all(map(_is_vector, vectors)):
        raise Refused(f"the reply does not hold {count} vectors", where=WHERE)
    return [[float(value) for value in vector] for vector in vectors]


def has_model(models: object, name: str) -> bool:
    """Whether a reply of `/api/tags` lists the model; a name without a tag means `:latest`."""
    full = name if ":" in name.rsplit("/", 1)[-1] else f"{name}:latest"
    listed = models if isinstance(models, list) else []
    return any(isinstance(model, dict) and model.get("name") in {name, full} for model in listed)


def client_error(error: Exception, hint: str) -> DionysusError:
    """An error of httpx in our words."""
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, httpx.TimeoutException):
        return Unavailable(f"no answer in time ({type(error).__name__})", where=WHERE, hint=hint)
    if isinstance(error, httpx.UnsupportedProtocol | httpx.InvalidURL | httpx.TooManyRedirects | httpx.ProxyError):
        return AccessRefused(what, where=WHERE, hint="Check OLLAMA_URL and the proxy settings.")
    if isinstance(error, httpx.TransportError):
        return Unavailable(what, where=WHERE, hint=hint)
    return Refused(what, where=WHERE)


def status_error(status: int, reason: str, model: str) -> DionysusError:
    """An answer other than 200 in our words. 500 counts as a refusal: a text that crashes the model gets it."""
    what = f"answer {status}: {reason}" if reason else f"answer {status}"
    if status == httpx.codes.NOT_FOUND:
        return AccessRefused(what, where=WHERE, hint=_pull_hint(model))
    if status in _OVERLOADED:
        return Unavailable(what, where=WHERE)
    if status == httpx.codes.REQUEST_ENTITY_TOO_LARGE:
        return TooLarge(what, where=WHERE)
    if status in {httpx.codes.BAD_REQUEST, httpx.codes.INTERNAL_SERVER_ERROR}:
        return Refused(what, where=WHERE)
    return AccessRefused(what, where=WHERE, hint="Does OLLAMA_URL name an Ollama that this program may use?")


def _client(url: str) -> httpx.AsyncClient:
    parts = urlsplit(url)
    # A proxy cannot reach our loopback, and plain HTTP needs no certificates, which take 20 ms and 2 MB to load.
    return httpx.AsyncClient(trust_env=parts.hostname not in LOOPBACK, verify=parts.scheme == "https")


def _pull_hint(model: str) -> str:
    return f"Run: ollama pull {model}"


def _field(reply: object, name: str) -> object:
    if isinstance(reply, dict) and name in reply:
        return reply[name]
    raise Refused(f"the reply has no field {name}", where=WHERE, hint="Does OLLAMA_URL name an Ollama?")


def _is_vector(value: object) -> bool:
    return isinstance(value, list) and all(type(number) in {int, float} for number in value)


def _reason(response: httpx.Response) -> str:
    try:
        reply = response.json()
    except ValueError:
        return ""
    return str(reply.get("error", ""))[:_ERROR_LENGTH] if isinstance(reply, dict) else ""
