"""Compares every answer of the API with its OpenAPI document: route, status, headers, media type and body.

Tests get their HTTP clients here, or add `hooks` to a client, so that every answer is checked. For an address or a
method that the document does not have, `components.responses` applies. A HEAD is checked as the GET, without a body.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from typing import Any, Final

import httpx
import orjson
from jsonschema_rs import Draft202012Validator, ValidationError

from regions.plain_http import TRUST_NOBODY

ELSEWHERE: Final = ""
"""The template of a request whose address or method the document does not have."""

Pair = tuple[str, str, int]
"""Method, template and status."""


class Answers:
    """Checks answers against a document, and records which documented pairs occurred."""

    def __init__(self, document: Mapping[str, Any], *, undocumented: Collection[str] = ()) -> None:
        """Read the document.

        Args:
            document: An OpenAPI document.
            undocumented: Paths that do not belong to the API. Their answers are not checked.
        """
        self._document = document
        self._undocumented = frozenset(undocumented)
        self._templates = [
            (re.compile(re.sub(r"\{[a-z]+\}", "[^/]+", template)), template) for template in document["paths"]
        ]
        self._validators: dict[str, Draft202012Validator] = {}
        self.seen: set[Pair] = set()

    @property
    def pairs(self) -> Iterator[Pair]:
        """Every documented pair of route and status."""
        for template, methods in self._document["paths"].items():
            for method, operation in methods.items():
                yield from ((method.upper(), template, int(status)) for status in operation["responses"])
        yield from ((ELSEWHERE, ELSEWHERE, int(status)) for status in self._document["components"]["responses"])

    @cached_property
    def headers(self) -> frozenset[str]:
        """Every header that the document lists for at least one answer, in lower case."""
        found = [
            answer.get("headers", {})
            for methods in self._document["paths"].values()
            for operation in methods.values()
            for answer in operation["responses"].values()
        ]
        return frozenset(name.lower() for headers in found for name in headers)

    def hooks(self) -> dict[str, list[Any]]:
        """Return event hooks that check each answer of an asynchronous client."""

        async def check(response: httpx.Response) -> None:
            await response.aread()
            self.check(response)

        return {"response": [check]}

    def client(self, **options: Any) -> httpx.Client:
        """Return a client that checks each answer."""

        def check(response: httpx.Response) -> None:
            response.read()
            self.check(response)

        return httpx.Client(event_hooks={"response": [check]}, trust_env=False, verify=TRUST_NOBODY, **options)

    def check(self, response: httpx.Response) -> None:
        """Fail when the document does not allow an answer."""
        path = response.request.url.path
        if path in self._undocumented:
            return
        method, template = self._route_of(response.request.method, path)
        said = f"{response.request.method} {path} was answered {response.status_code} {response.text[:500]}"
        responses: Mapping[str, Any] = self._document["components"]["responses"]
        if template != ELSEWHERE:
            responses = self._document["paths"][template][method.lower()]["responses"]
        allowed = responses.get(str(response.status_code))
        assert allowed is not None, f"{said}; documented are {', '.join(responses)}"
        self._check_headers(response, allowed, said)
        self._check_content(response, allowed, said)
        self.seen.add((method, template, response.status_code))

    def _route_of(self, method: str, path: str) -> tuple[str, str]:
        method = "GET" if method == "HEAD" else method
        template = next((template for pattern, template in self._templates if pattern.fullmatch(path)), ELSEWHERE)
        if method.lower() not in self._document["paths"].get(template, {}):
            return ELSEWHERE, ELSEWHERE
        return method, template

    def _check_headers(self, response: httpx.Response, allowed: Mapping[str, Any], said: str) -> None:
        promised: Mapping[str, Any] = allowed.get("headers", {})
        missing = [name for name, header in promised.items() if header["required"] and name not in response.headers]
        assert missing == [], f"{said}; it lacks {missing}"
        silent = self.headers - {name.lower() for name in promised}
        assert silent.isdisjoint(response.headers), f"{said}; not documented: {silent & set(response.headers)}"

    def _check_content(self, response: httpx.Response, allowed: Mapping[str, Any], said: str) -> None:
        contents: Mapping[str, Any] = allowed.get("content", {})
        if not contents:
            assert response.content == b"", f"{said}; documented is no content"
            return
        media_type = response.headers.get("content-type", "").partition(";")[0]
        assert media_type in contents, f"{said}; it is {media_type or 'of no type'}, documented: {', '.join(contents)}"
        if response.request.method == "HEAD":
            assert response.content == b"", f"{said}; a HEAD has no content"
            return
        content = contents[media_type]
        body: Any = orjson.loads(response.content) if media_type.endswith("json") else response.text
        wrong = [f"{error.instance_path}: {error.message}" for error in self._errors(content["schema"], body)]
        assert wrong == [], f"{said}; {wrong}"
        if media_type == "application/problem+json":
            _check_problem(response, body, content["examples"], said)
        if "next" in body and "Link" in allowed.get("headers", {}):
            assert ("link" in response.headers) == (body["next"] is not None), f"{said}; Link and next differ"

    def _errors(self, schema: Mapping[str, Any], body: object) -> Iterator[ValidationError]:
        key = repr(schema)
        if key not in self._validators:
            whole = {**schema, "components": self._document["components"]}
            self._validators[key] = Draft202012Validator(whole, validate_formats=True)
        return self._validators[key].iter_errors(body)


def read_answer(request: bytes, answer: bytes) -> httpx.Response:
    """Parse the bytes of a request and of its answer; return the answer."""
    method, target, _ = request.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    return httpx.Response(
        int(first.split(" ")[1]), headers=headers, content=body, request=httpx.Request(method, f"http://test{target}")
    )


def _check_problem(response: httpx.Response, problem: Any, examples: Mapping[str, Any], said: str) -> None:
    titles = {one["value"]["type"]: one["value"]["title"] for one in examples.values()}
    assert problem["type"] in titles, f"{said}; documented are {', '.join(titles)}"
    assert problem["title"] == titles[problem["type"]], f"{said}; documented is {titles[problem['type']]!r}"
    assert problem["status"] == response.status_code, said
    assert problem.get("request_id") == response.headers.get("x-request-id"), said
