"""The page for everybody: on a phone, by keyboard alone, by ear, behind a proxy."""

import subprocess

import pytest

from tests.apps.ui.proxy import PREFIX, proxied
from tests.apps.ui.test_page import PROMPT, TOKENS, expected

Keys = pytest.importorskip("selenium.webdriver.common.keys", reason="selenium is not installed; the extra `test` brings it").Keys
pytestmark = pytest.mark.slow
WIDTHS = (400, 1280)


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_window(page, width):
    page.resize(width)
    page.open_settings()
    page.write("prompt", "Node 7 of a_very_long_name_without_any_place_to_break_it " * 2)
    page.click("generate")
    page.wait_for_the_end()
    page.click("go-on")
    page.wait_for_the_end()
    assert page.overflow() <= 0
    page.click("tab-compare")
    page.write("prompt", PROMPT)
    page.click("generate")
    page.wait_for_the_end()
    page.wait(lambda: len(page.all("#chart rect")) == TOKENS)
    assert page.overflow() <= 0


@pytest.mark.parametrize("width", WIDTHS)
def test_a_tap_shows_what_hovering_shows(page, width):
    page.resize(width)
    page.write("prompt", PROMPT)
    page.click("generate")
    page.wait_for_the_end()
    span = next(span for span in page.all(".token")[3:] if span.text.strip())
    page.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", span)
    page.tap(span)
    page.wait(lambda: page.find("#hover").is_displayed())
    assert len(page.all("#hover .bar")) >= 6
    box = page.find("#hover").rect
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    page.tap(page.find(".speed"))
    page.wait(lambda: not page.find("#hover").is_displayed())


@pytest.mark.parametrize("width", WIDTHS)
def test_by_keyboard_alone(page, float_dir, tokenizer, width):
    page.resize(width)
    assert page.focus() == "prompt"
    page.press("Node 7", Keys.SHIFT + Keys.ENTER + Keys.NULL, "of graph")
    assert page.value("prompt") == "Node 7\nof graph"
    page.press(Keys.ENTER)
    page.wait_for_the_end()
    assert page.value("prompt") == "Node 7\nof graph"
    assert page.count() == TOKENS
    page.tab_to("again")
    page.press(Keys.ENTER)
    page.wait_for_the_end()
    page.tab_to("earlier")
    page.press(Keys.SPACE)
    assert page.find("#versions span").text == "1 of 2"
    page.tab_to("tab-write")
    page.press(Keys.ARROW_RIGHT)
    assert page.focus() == "tab-compare"
    assert page.find("#tab-compare").get_attribute("aria-selected") == "true"
    page.tab_to("prompt")
    page.press(Keys.CONTROL + "a" + Keys.NULL, PROMPT, Keys.ENTER)
    page.wait(lambda: page.count(1) > 2)
    page.press(Keys.ESCAPE)
    page.wait_for_the_end()
    assert 2 < page.count(1) < TOKENS
    page.tab_to("tab-compare")
    page.press(Keys.HOME)
    assert page.focus() == "tab-write"
    assert page.count() == TOKENS
    page.driver.execute_script("document.querySelector('.text').focus()")
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert page.find("#hover").is_displayed()
    assert "%" in page.find("#said").get_property("textContent")


def test_what_a_screen_reader_says(page):
    assert page.find("#status").get_attribute("role") == "status"
    page.write("prompt", PROMPT)
    page.click("generate")
    page.wait(lambda: page.find("#status").text == "Writing …")
    page.wait_for_the_end()
    assert page.find("#status").text.startswith(f"Done: {TOKENS} tokens in ")
    assert page.find("#said").get_property("textContent") == page.text()
    unnamed = """return [...document.querySelectorAll("button, input, select, textarea, [tabindex='0']")].filter((each) =>
        !(each.labels?.length || each.textContent.trim() || each.getAttribute("aria-label"))).map((each) => each.outerHTML)"""
    assert page.driver.execute_script(unnamed) == []


def test_the_tokens_of_the_prompt_are_counted_while_it_is_typed(page, tokenizer):
    for prompt in (PROMPT, f"{PROMPT} and Node 8"):
        page.write("prompt", prompt)
        page.wait(lambda prompt=prompt: page.find("#count").text == f"{len(tokenizer(prompt).input_ids)} tokens")
    page.click("load")
    page.wait(lambda: "is loaded" in page.find("#loaded").text)
    page.write("max_new_tokens", "255")
    page.wait(lambda: page.find("#count").text.endswith("tokens, room for 1"))


def test_what_each_choice_does_is_said(page):
    for precision, said in (
        ("w8", "8-bit weights; the activations stay floats"),
        ("w4", "4-bit weights"),
        ("w8a8-naive", "without smoothing"),
    ):
        page.choose("precision", precision)
        assert said in page.find("#precision-hint").text
    page.open_settings()
    page.driver.execute_script("document.querySelector('#fine details').open = true")
    assert "Typical-p\nDraw among the tokens that surprise about as much" in page.find("#hints").text
    assert "Repetition\nAbove 1, tokens that the text has already become less probable" in page.find("#hints").text


@pytest.mark.parametrize("keeps_host", [True, False], ids=["JupyterHub", "Codespaces"])
def test_behind_a_proxy_with_a_path_prefix(page, slow_address, float_dir, tokenizer, keeps_host):
    with proxied(slow_address, keeps_host) as (_, port):
        page.address = f"http://hub.example:{port}{PREFIX}/"
        page.open()
        page.hosts()
        page.press(PROMPT, Keys.ENTER)
        page.wait_for_the_end()
        assert page.text() == expected(float_dir, tokenizer)
        page.wait(lambda: page.find("#count").text == f"{len(tokenizer(PROMPT).input_ids)} tokens")
        assert page.hosts() == {"hub.example"}


def test_over_https(page, slow_address, float_dir, tokenizer, tmp_path):
    files = str(tmp_path / "certificate.pem"), str(tmp_path / "key.pem")
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "1",
        "-subj",
        "/CN=hub.example",
        "-out",
        files[0],
        "-keyout",
        files[1],
    ]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no openssl here, which makes the certificate")
    with proxied(slow_address, certificate=files) as (_, port):
        page.address = f"https://hub.example:{port}{PREFIX}/"
        page.open()
        page.press(PROMPT, Keys.ENTER)
        page.wait_for_the_end()
        assert page.text() == expected(float_dir, tokenizer)


@pytest.mark.parametrize("keeps_host", [True, False])
def test_a_proxy_that_was_not_named_is_told_what_to_do(page, slow_address, keeps_host):
    with proxied(slow_address, keeps_host) as (_, port):
        page.driver.get(f"http://other.example:{port}{PREFIX}/")
        page.wait(lambda: "gpt2opt ui --host other.example" in page.find("body").text)
        page.complaints()
