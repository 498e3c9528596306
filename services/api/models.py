"""Models of request bodies, which validate them, and of answers, from which the OpenAPI document is generated.

Decides which fields exist, their types and fixed limits. The length of a text is checked first, and each later check
takes linear time. The length of a comment's body is limited by a setting, so the route checks it
(`services/api/comment_body.py`). Request models reject unknown fields and convert no types.
"""

import re
from typing import Annotated, Final, Literal, Self
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    WithJsonSchema,
    model_validator,
)

from services.api.thread_key import KEY_CHARS_MAX

SITE_NAME_CHARS_MAX: Final = 200
ORIGINS_MAX: Final = 50
TITLE_CHARS_MAX: Final = 500
AUTHOR_NAME_CHARS_MAX: Final = 100
# The longest address that RFC 5321 allows in a path.
EMAIL_CHARS_MAX: Final = 254
URL_CHARS_MAX: Final = 2000
# The form of a subject in OpenID Connect Core 1.0, section 2: a site can send the `sub` of its tokens.
USER_CHARS_MAX: Final = 255

_ORIGIN: Final = re.compile(r"https?://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_EMAIL: Final = re.compile(r"[^@\s]+@[^@\s]+")
_TIMESTAMP: Final = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z$"
# The look-ahead requires one character of a host. Two adjacent repetitions instead would take quadratic time.
_VISIBLE_ASCII: Final = re.compile(r"[!-~]*")
_WEB_URL: Final = re.compile(r"https?://(?=[^\s/?#])\S+", re.IGNORECASE)


def _one_line(text: str) -> str:
    if any(ord(c) < 0x20 or c == "\x7f" for c in text):  # noqa: PLR2004 - the C0 controls
        raise ValueError("must not contain control characters")
    if not text.strip():
        raise ValueError("must not be blank")
    return text


def _origin(text: str) -> str:
    if text != "*" and not _ORIGIN.fullmatch(text):
        raise ValueError("must be an origin such as https://example.com, in lower case and without a path, or *")
    return text


def _email(text: str) -> str:
    if not _EMAIL.fullmatch(text):
        raise ValueError("must be an e-mail address")
    return text


def _web_url(text: str) -> str:
    if not _WEB_URL.fullmatch(text):
        raise ValueError("must be an http or https address")
    return text


def _visible_ascii(text: str) -> str:
    if not _VISIBLE_ASCII.fullmatch(text):
        raise ValueError("must be visible ASCII characters without spaces")
    return text


def _vote_value(value: int) -> int:
    if value not in (-1, 0, 1):
        raise ValueError("must be -1, 0 or 1")
    return value


def _bounded(maximum: int) -> StringConstraints:
    return StringConstraints(min_length=1, max_length=maximum)


SiteName = Annotated[str, _bounded(SITE_NAME_CHARS_MAX), AfterValidator(_one_line)]
Origin = Annotated[str, _bounded(URL_CHARS_MAX), AfterValidator(_origin)]
Origins = Annotated[list[Origin], Field(max_length=ORIGINS_MAX)]
Body = Annotated[str, StringConstraints(min_length=1)]
# Not a Literal, which accepts true as 1.
VoteValue = Annotated[
    int,
    AfterValidator(_vote_value),
    Field(description="1 up, -1 down, 0 none.", json_schema_extra={"enum": [-1, 0, 1]}),
]
User = Annotated[
    str,
    _bounded(USER_CHARS_MAX),
    AfterValidator(_visible_ascii),
    Field(description="The site's own id of the user.", json_schema_extra={"pattern": "^[!-~]+$"}),
]
ThreadKey = Annotated[str, _bounded(KEY_CHARS_MAX)]
Timestamp = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time", "pattern": _TIMESTAMP})]


class RequestModel(BaseModel):
    """Base class of the request bodies."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class NewSite(RequestModel):
    """A site to create."""

    name: SiteName
    origins: Origins = []


class SiteChanges(RequestModel):
    """The fields of a site to replace. A field that is left out stays as it is."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    name: SiteName = Field(default_factory=str)
    origins: Origins = Field(default_factory=list[Origin])

    @model_validator(mode="after")
    def _change_something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("must have name or origins")
        return self


class NewAuthor(RequestModel):
    """Who an anonymous comment says it is from. The e-mail address is never shown."""

    name: Annotated[str, _bounded(AUTHOR_NAME_CHARS_MAX), AfterValidator(_one_line)]
    email: Annotated[str, _bounded(EMAIL_CHARS_MAX), AfterValidator(_one_line), AfterValidator(_email)] | None = None
    url: Annotated[str, _bounded(URL_CHARS_MAX), AfterValidator(_one_line), AfterValidator(_web_url)] | None = None


class NewComment(RequestModel):
    """A comment to post."""

    thread: ThreadKey
    title: Annotated[str, _bounded(TITLE_CHARS_MAX), AfterValidator(_one_line)] | None = None
    parent: UUID | None = None
    body: Body
    author: NewAuthor | None = None


class CommentBody(RequestModel):
    """A body in Markdown: to replace a comment's, or to preview."""

    body: Body


class Vote(RequestModel):
    """The vote that a user of the site wants to have on a comment."""

    value: VoteValue
    user: User


NEW_SITE: Final = TypeAdapter(NewSite)
SITE_CHANGES: Final = TypeAdapter(SiteChanges)
NEW_COMMENT: Final = TypeAdapter(NewComment)
COMMENT_BODY: Final = TypeAdapter(CommentBody)
VOTE: Final = TypeAdapter(Vote)


class AnswerModel(BaseModel):
    """Base class of the answers: an answer has no fields that its schema does not have."""

    model_config = ConfigDict(extra="forbid")


class Site(AnswerModel):
    """A site without its secrets."""

    id: UUID
    name: str
    origins: list[str]


class SitePage(AnswerModel):
    """A page of the list of sites."""

    sites: list[Site]
    next: str | None


class CreatedSite(AnswerModel):
    """A site as its creation answers; the secrets are shown this once."""

    id: UUID
    name: str
    api_key: str
    token_secret: str


class Author(AnswerModel):
    """Who a comment is from; all null for a deleted one."""

    id: str | None
    name: str | None
    url: str = Field(default_factory=str)


class EditedComment(AnswerModel):
    """A comment as its edit answers: what the ledger knows. A read has its replies, score and votes as well."""

    id: UUID
    thread: str
    parent: UUID | None
    author: Author
    body: str | None = Field(description="Markdown; null for a deleted comment.")
    html: str | None = Field(description="The body as safe HTML; null for a deleted comment.")
    created_at: Timestamp
    edited_at: Timestamp | None
    version: int
    state: Literal["approved", "pending", "rejected", "spam", "deleted"]


class CommentShape(EditedComment):
    """A comment."""

    model_config = ConfigDict(title="Comment")

    score: int = Field(description="Votes up minus votes down.")
    votes: "Votes"
    replies: "Replies"


class Votes(AnswerModel):
    """Counts of the votes of a comment."""

    up: int
    down: int


class VoteCounts(Votes):
    """The counts after a vote, and the vote."""

    score: int = Field(description="Votes up minus votes down.")
    mine: Literal[-1, 0, 1] = Field(description="The vote of the user that the request named.")


class Replies(AnswerModel):
    """Direct replies: how many there are, those shown here, and where to go on."""

    count: int
    items: list[CommentShape]
    next: str | None


class Thread(AnswerModel):
    """The thread of a page. `id` is null while nobody has commented."""

    key: str
    id: UUID | None
    title: str | None
    state: Literal["open", "closed", "read_only"]
    count: int


class ThreadPage(AnswerModel):
    """A page of a thread."""

    thread: Thread
    comments: list[CommentShape]
    next: str | None


class Counts(AnswerModel):
    """Comments per thread key, as asked for."""

    counts: dict[str, int]


class Preview(AnswerModel):
    """Rendered Markdown."""

    html: str


class Alive(AnswerModel):
    """The process answers."""

    alive: Literal[True]


class Ready(AnswerModel):
    """The process can serve."""

    ready: Literal[True]


class FieldErrorShape(AnswerModel):
    """One wrong field."""

    field: str
    message: str


class ProblemShape(AnswerModel):
    """An error, RFC 9457. The last three are there when they are known."""

    model_config = ConfigDict(title="Problem")

    type: str
    title: str
    status: int
    detail: str
    instance: str = Field(default_factory=str, description="The path that was asked for.")
    request_id: str = Field(default_factory=str, description="The answer's X-Request-Id.")
    errors: list[FieldErrorShape] = Field(default_factory=list[FieldErrorShape], description="The wrong fields.")
