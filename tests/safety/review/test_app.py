from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from starlette.datastructures import Headers
from starlette.testclient import TestClient

from burnish.safety.review.access import HEADERS, _is_too_large, csrf_token, is_loopback
from burnish.safety.review.app import make_app
from burnish.safety.review.store import APPROVE, FIRST, REJECT, SECOND
from tests.safety.review.conftest import flagged, pair

SITE = "http://127.0.0.1:8765"


def client_of(store) -> TestClient:
    return TestClient(make_app(store), base_url=SITE, follow_redirects=False)


@pytest.fixture
def client(store) -> Iterator[TestClient]:
    with client_of(store) as opened:
        yield opened


def enter(client, store, name="ann"):
    """Sign in and return the form token of the session."""
    answer = client.post("/enter", data={"token": store.add_reviewer(name)})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie
    (session,) = client.cookies.values()
    return csrf_token(session)


def sides(page: str) -> dict[str, str]:
    texts = re.findall(r'<h3>([AB])</h3>\n<div class="text">([^<]*)</div>', page)
    return dict(texts)


def test_a_stranger_sees_the_entrance_only(client, store):
    store.add_items([pair(1)])
    for path in ("/", "/progress"):
        page = client.get(path)
        assert page.status_code == 200 and 'name="token"' in page.text and "prompt 1" not in page.text
    assert client.post("/enter", data={"token": "guess"}).status_code == 403
    assert client.post("/judge", data={"item": 1, "choice": "left"}).status_code == 403
    assert client.get("/api/next").status_code == 401
    assert client.get("/api/next", headers={"Authorization": "Basic x"}).status_code == 401
    assert client.get("/docs").status_code == client.get("/openapi.json").status_code == 404
    assert list(store.judgements()) == []


def test_a_choice_is_recorded_for_the_text_on_that_side(client, store):
    store.add_items(pair(number) for number in range(12))
    csrf = enter(client, store)
    left = []
    for number in range(12):
        page = client.get("/").text
        shown = sides(page)
        assert set(shown.values()) == {f"first {number}", f"second {number}"}
        left.append(shown["A"])
        form = {"csrf": csrf, "item": number + 1, "choice": "left", "rating_left": "5", "tag": ["unsafe"]}
        assert client.post("/judge", data=form).status_code == 303
    chosen = [one.item.texts[(FIRST, SECOND).index(one.answer.label)] for one in store.judgements()]
    assert chosen == left
    assert {one.answer.label for one in store.judgements()} == {FIRST, SECOND}  # the order is blind
    for one in store.judgements():
        assert one.answer.ratings == ((5, None) if one.answer.label == FIRST else (None, 5))
        assert one.answer.tags == ("unsafe",)


def test_flagged_text_is_approved_or_rejected(client, store):
    store.add_items([flagged(1, ("insult",)), flagged(2)])
    csrf = enter(client, store)
    assert "insult" in client.get("/").text
    client.post("/judge", data={"csrf": csrf, "item": 1, "choice": APPROVE, "rating_left": "3"})
    client.get("/")
    client.post("/judge", data={"csrf": csrf, "item": 2, "choice": REJECT})
    assert [(one.answer.label, one.answer.ratings) for one in store.judgements()] == [
        (APPROVE, (3,)), (REJECT, (None,)),
    ]  # fmt: skip
    assert "2 of 2 done" in client.get("/").text


def test_undo_and_skip(client, store):
    store.add_items([pair(1), pair(2)])
    csrf = enter(client, store)
    client.get("/")
    client.post("/judge", data={"csrf": csrf, "item": 1, "choice": "tie"})
    assert "prompt 2" in client.get("/").text
    client.post("/undo", data={"csrf": csrf})
    assert "prompt 1" in client.get("/").text
    client.post("/skip", data={"csrf": csrf, "item": 1})
    assert "prompt 2" in client.get("/").text


@pytest.mark.parametrize("path", ["/judge", "/undo", "/skip", "/leave"])
@pytest.mark.parametrize("csrf", ["", "wrong"])
def test_a_form_without_the_sessions_token_changes_nothing(client, store, path, csrf):
    store.add_items([pair(1)])
    enter(client, store)
    client.get("/")
    answer = client.post(path, data={"csrf": csrf, "item": 1, "choice": "tie"}, headers={"Accept-Language": "zh"})
    assert answer.status_code == 403
    assert (
        "表单未被接受" in answer.text and 'href="/static/review.css"' in answer.text and '<a href="/">' in answer.text
    )
    assert list(store.judgements()) == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"},
    ],
)  # fmt: skip
def test_a_form_of_another_site_is_refused(client, store, headers):
    store.add_items([pair(1)])
    csrf = enter(client, store)
    client.get("/")
    form = {"csrf": csrf, "item": 1, "choice": "tie"}
    assert client.post("/judge", data=form, headers=headers).status_code == 403
    assert (
        client.post("/judge", data=form, headers={"Origin": SITE, "Sec-Fetch-Site": "same-origin"}).status_code == 303
    )


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "evil@127.0.0.1", "", "127.0.0.1:8765:1"])
def test_a_foreign_host_name_is_refused(client, host):
    answer = client.get("/", headers={"Host": host})
    assert answer.status_code == 400 and "Content-Security-Policy" in answer.headers


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8765", "127.0.0.1", "[::1]:8765"])
def test_own_host_names_are_served(client, host):
    assert client.get("/", headers={"Host": host}).status_code == 200


def test_every_response_has_the_headers(client, store):
    responses = [client.get("/"), client.get("/static/review.css"), client.get("/nothing"), client.get("/api/next")]
    responses.append(client.post("/judge", data={}))
    for response in responses:
        assert {name: response.headers[name] for name in HEADERS} == dict(HEADERS)
    assert "unsafe" not in HEADERS["Content-Security-Policy"]
    assert client.get("/static/..%2Fapp.py").status_code == client.get("/static/app.py").status_code == 404


def test_a_large_request_is_refused(client, store):
    csrf = enter(client, store)
    assert client.post("/skip", data={"csrf": csrf, "item": 1, "x": "y" * 70_000}).status_code == 413


def test_bad_values_are_refused_with_the_reason(client, store):
    store.add_items([pair(1)])
    csrf = enter(client, store)
    client.get("/")
    for form in (
        {"choice": "best"}, {"choice": "first"}, {"choice": "left", "tag": "<b>"}, {"choice": "left", "item": 9},
        {"item": "x"},
    ):  # fmt: skip
        answer = client.post("/judge", data={"csrf": csrf, "item": 1} | form)
        assert answer.status_code == 422 and "Back to the review" in answer.text and "<b>" not in answer.text
    assert "write left, right or tie" in client.post("/judge", data={"csrf": csrf, "item": 1, "choice": "first"}).text
    assert list(store.judgements()) == []


def test_an_item_that_went_on_is_explained(client, store, clock):
    store.add_items([pair(1), pair(2)])
    csrf = enter(client, store)
    client.get("/")
    clock.now += 61
    with client_of(store) as other:
        enter(other, store, "bob")
        assert "prompt 1" in other.get("/").text
    answer = client.post("/judge", data={"csrf": csrf, "item": 1, "choice": "tie"})
    page = client.get(answer.headers["location"]).text
    assert "went to another reviewer" in page and "prompt 2" in page


def test_the_page_speaks_english_and_chinese(client, store):
    store.add_items([pair(1)])
    enter(client, store)
    assert "Which completion is better?" in client.get("/").text
    chinese = client.get("/", headers={"Accept-Language": "zh-CN,zh;q=0.9,en;q=0.8"}).text
    assert "哪个回答更好？" in chinese and '<html lang="zh-Hans">' in chinese
    assert client.get("/language/zh").headers["location"] == "/"
    assert "哪个回答更好？" in client.get("/").text
    assert "set-cookie" not in client.get("/language/xx").headers


def test_a_program_judges_over_json(client, store):
    store.add_items([pair(1), flagged(2)])
    headers = {"Authorization": f"Bearer {store.add_reviewer('robot')}"}
    item = client.get("/api/next", headers=headers).json()
    assert (item["kind"], sorted(item["texts"])) == ("pair", ["first 1", "second 1"])
    choice = "left" if item["texts"][0] == "first 1" else "right"
    assert client.post("/api/judge", headers=headers, json={"item": item["id"], "choice": choice}).json() == {
        "recorded": True
    }
    item = client.get("/api/next", headers=headers).json()
    assert client.post("/api/judge", headers=headers, json={"item": item["id"], "choice": "approve"}).status_code == 200
    assert client.get("/api/next", headers=headers).json() is None
    assert [one.answer.label for one in store.judgements()] == [FIRST, APPROVE]
    assert client.get("/api/progress", headers=headers).json()["by_reviewer"] == {"robot": 2}
    assert client.post("/api/undo", headers=headers).json() == {"undone": True}
    assert client.post("/api/judge", headers=headers, json={"item": 1, "choice": "tie"}).status_code == 200


def test_progress_shows_agreement(client, store):
    store.add_items([flagged(number) for number in range(3)], wanted=lambda item: 2)
    csrf = enter(client, store)
    assert "No item was judged by two people" in client.get("/progress").text
    with client_of(store) as other:
        for number, (browser, token) in enumerate([(client, csrf), (other, enter(other, store, "bob"))] * 3):
            browser.get("/")
            form = {"csrf": token, "item": number // 2 + 1, "choice": APPROVE}
            assert browser.post("/judge", data=form).status_code == 303
    page = client.get("/progress").text
    assert "not defined: all labels are equal" in page and "nan" not in page


def test_leave_ends_the_session(client, store):
    csrf = enter(client, store)
    client.post("/leave", data={"csrf": csrf})
    assert 'name="token"' in client.get("/").text


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("box", False)],
)
def test_loopback_addresses(host, local):
    assert is_loopback(host) is local


@pytest.mark.parametrize(
    "values", [{"item": "9" * 40}, {"item": "0"}, {"item": "-1"}, {"item": str(2**31)}, {"item": "x"}]
)
def test_a_number_that_is_no_item_is_refused(client, store, values):
    store.add_items([pair(1)])
    csrf = enter(client, store)
    headers = {"Authorization": f"Bearer {store.add_reviewer('bob')}"}
    for path in ("/judge", "/skip"):
        assert client.post(path, data={"csrf": csrf, "choice": "left", **values}).status_code == 422
    sent = {"item": int(values["item"]) if values["item"] != "x" else "x", "choice": "left"}
    assert client.post("/api/judge", json=sent, headers=headers).status_code == 422
    assert list(store.judgements()) == []


def test_a_rating_of_thousands_of_digits_counts_as_none(client, store):
    store.add_items([pair(1)])
    csrf = enter(client, store)
    assert client.get("/").status_code == 200
    ratings = {"rating_left": "9" * 5000, "rating_right": "٣"}
    answer = client.post("/judge", data={"csrf": csrf, "item": 1, "choice": "tie", **ratings})
    assert answer.status_code == 303
    (judgement,) = store.judgements()
    assert judgement.answer.ratings == (None, None)


@pytest.mark.parametrize("length", ["9" * 5000, "²", "1e3", "-1"])
def test_a_length_that_is_no_number_is_too_large(length):
    assert _is_too_large(Headers({"content-length": length}))
