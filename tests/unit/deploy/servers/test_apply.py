"""What an administrator is told when RabbitMQ's management refuses."""

from __future__ import annotations

import pytest
import urllib3

from deploy.servers.apply import Management
from protocol.errors import NotAllowed


@pytest.mark.parametrize(
    ("status", "says"),
    [(401, "user or password is wrong, or the user lacks the administrator tag"), (403, "needs the administrator tag")],
)
def test_a_refused_login_says_what_may_be_wrong_with_it(
    status: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> urllib3.HTTPResponse:
        return urllib3.HTTPResponse(status=status)

    monkeypatch.setattr(urllib3.PoolManager, "request", refuse)
    with (
        Management("http://admin:secret@127.0.0.1:15672") as management,
        pytest.raises(NotAllowed, match=f"{status}; .*{says}") as refused,
    ):
        management.call("GET", "vhosts", "clinics")
    assert "secret" not in str(refused.value)
