"""Checks the body of a comment in a post, an edit or a preview.

Decides the order: the length is checked first, because its limit is a setting and a request may be ten times as long.
"""

from services.api.problems import FieldError, Problem, invalid


def check_body(body: str, chars_max: int) -> None:
    """Raise a problem if a text cannot be the body of a comment.

    Raises:
        Problem: `body-too-long`; `invalid-request` if the body is blank or contains a NUL character.
    """
    if len(body) > chars_max:
        error = FieldError("body", f"may have {chars_max} characters, has {len(body)}")
        raise Problem("body-too-long", f"A comment may have {chars_max} characters.", errors=[error])
    if "\x00" in body:
        raise invalid("body", "must not contain a NUL character")
    if body.isspace():
        raise invalid("body", "must not be blank")
