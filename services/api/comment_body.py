"""What a comment's body must be, for whoever posts, edits or previews one.

Decides the order: a body is measured first, because the bound is a setting and the request may carry ten times of it.
"""

from services.api.problems import FieldError, Problem, invalid


def check_body(body: str, chars_max: int) -> None:
    """Refuse what is no body of a comment.

    Raises:
        Problem: `body-too-long`, or `invalid-request` for a body that is blank or holds a NUL character.
    """
    if len(body) > chars_max:
        error = FieldError("body", f"may have {chars_max} characters, has {len(body)}")
        raise Problem("body-too-long", f"A comment may have {chars_max} characters.", errors=[error])
    if "\x00" in body:
        raise invalid("body", "must not contain a NUL character")
    if body.isspace():
        raise invalid("body", "must not be blank")
