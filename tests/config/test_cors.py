"""The section `cors` of the listeners: origins as browsers send them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gateway.config.settings import check_settings

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.config.settings import Settings

MODEL = "models: [{name: big, protocol: tgi, api_base: 'http://tgi:80', price: {input_per_1m: 1, output_per_1m: 2}}]\n"
NO_ORIGIN = (
    "must be an origin as browsers send it, like https://app.example.com or http://localhost:5173: in lower case, "
    "without a path, without a final slash, and without wildcards"
)


def checked(folder: Path, text: str) -> tuple[Settings | None, list[str]]:
    (folder / "config.yaml").write_text(MODEL + text)
    settings, _, issues = check_settings(folder / "config.yaml", {})
    return settings, [str(issue).partition("config.yaml:")[2] for issue in issues]


def test_cors_is_off_by_default(tmp_path: Path) -> None:
    settings, _ = checked(tmp_path, "")
    assert settings is not None
    assert settings.server.cors is settings.admin.cors is None


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "https://app.example.com",
        "http://localhost:5173",
        "https://xn--mnchen-3ya.example",
        "http://127.0.0.1:8080",
        "http://[::1]:8080",
        "http://app.example.com:443",
        "chrome-extension://abcdefghijklmnop",
        "capacitor://localhost",
    ],
)
def test_an_origin_is_kept_as_written(tmp_path: Path, origin: str) -> None:
    settings, _ = checked(tmp_path, f"server: {{cors: {{origins: ['{origin}'], headers: [X-Trace]}}}}\n")
    assert settings is not None
    assert settings.server.cors is not None
    assert settings.server.cors.origins == (origin,)
    assert settings.server.cors.headers == ("X-Trace",)


@pytest.mark.parametrize(
    "origin",
    [
        *("", "null", "app.example.com", "https://", "https://app.example.com/", "https://app.example.com/path"),
        *(
            "https://App.example.com",
            "https://*.example.com",
            "https://user@app.example.com",
            "https://münchen.example",
        ),
        *("https://app.example.com:port", "https://app.example.com ", "https://app.example.com,https://b.example"),
    ],
)
def test_a_value_that_no_browser_sends_is_an_issue(tmp_path: Path, origin: str) -> None:
    text = f"server:\n  cors:\n    origins:\n      - https://good.example\n      - '{origin}'\n"
    assert checked(tmp_path, text) == (None, [f"6: server.cors.origins[1]: {NO_ORIGIN}"])


@pytest.mark.parametrize(
    ("cors", "issue"),
    [
        ("{origins: ['https://a.example:443']}", "origins[0]: must not have the default port: browsers leave out :443"),
        ("{origins: ['http://a.example:80']}", "origins[0]: must not have the default port: browsers leave out :80"),
        (
            "{origins: ['*', 'https://a.example']}",
            'origins: has "*", which includes all other origins: remove them, or "*"',
        ),
        ("{origins: []}", "origins: must have at least 1 entry"),
        ("{origins: https://a.example}", "origins: must be a list: one '- ...' per entry"),
        ("{origins: ['*'], headers: ['x trace']}", "headers[0]: must be the name of a header, like authorization"),
        (
            "{origins: ['*'], headers: ['*']}",
            "headers[0]: must be the name of a header. To allow all headers, authorization included, omit the list",
        ),
        ("{origins: ['*'], headers: []}", "headers: must have at least 1 entry"),
        ("{headers: [x-trace]}", "origins: missing: add it"),
    ],
)
def test_an_invalid_value_is_an_issue_with_its_line(tmp_path: Path, cors: str, issue: str) -> None:
    assert checked(tmp_path, f"server:\n  cors: {cors}\n") == (None, [f"3: server.cors.{issue}"])


def test_the_admin_listener_names_its_origins(tmp_path: Path) -> None:
    message = "3: admin.cors: must name its origins: with '*', every web page could read metrics and queues"
    assert checked(tmp_path, "admin:\n  cors: {origins: ['*']}\n") == (None, [message])
    settings, _ = checked(tmp_path, "admin: {cors: {origins: ['https://ops.example']}}\n")
    assert settings is not None
    assert settings.admin.cors is not None
