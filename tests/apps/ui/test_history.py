"""Nothing that was typed or written is lost: texts with branches, Undo, reloads at any moment, lost connections, refusals."""

import pytest

from gpt2opt.apps.ui.choices import Choice
from tests.apps.ui.conftest import serving, slow_models
from tests.apps.ui.proxy import PREFIX, proxied
from tests.apps.ui.test_page import FIRST, PROMPT, TOKENS, expected

pytestmark = pytest.mark.slow


def write(page, prompt: str = PROMPT, how: str = "generate") -> str:
    """Write a text to its end and return it."""
    if how == "generate":
        page.write("prompt", prompt)
    page.click(how)
    page.wait_for_the_end()
    return page.text()


def rows(page) -> list[str]:
    return [row.text for row in page.all("#history .said")]


def test_regenerating_keeps_the_text_before(page):
    texts = [write(page), write(page, how="again"), write(page, how="again")]
    assert len({*texts}) == 3
    assert page.find("#versions span").text == "3 of 3"
    for at in (1, 0):
        page.click("earlier")
        assert page.text() == texts[at]
    assert page.find("#versions span").text == "1 of 3"
    assert not page.find("#earlier").is_enabled()
    page.click("later")
    assert page.text() == texts[1]
    page.open()
    assert page.text() == texts[1]
    assert len(rows(page)) == 3


def test_a_text_that_goes_on_is_a_branch_of_the_one_before(page):
    first = write(page)
    second = write(page, how="go-on")
    other = write(page, how="again")
    assert second != other
    assert [row.get_attribute("style") for row in page.all("#history li")] == ["--depth: 0;", "--depth: 1;", "--depth: 1;"]
    assert page.find("#history [aria-current] .said").get_property("textContent") == other.strip()[:160]
    page.all("#history .open")[0].click()
    assert page.text() == first
    assert page.value("prompt") == PROMPT


def test_undo_goes_back_to_the_text_and_the_prompt_before(page):
    assert not page.find("#undo").is_enabled()
    first = write(page)
    write(page, how="go-on")
    assert page.value("prompt") == PROMPT + first
    page.click("undo")
    assert (page.text(), page.value("prompt")) == (first, PROMPT)
    page.click("edit")
    assert page.value("prompt") == PROMPT + first
    page.open()
    page.click("undo")
    assert (page.text(), page.value("prompt")) == (first, PROMPT)
    page.find("#history li .quiet").click()
    assert len(rows(page)) == 1
    page.click("undo")
    assert len(rows(page)) == 2
    assert page.text() == first


def test_switching_the_tabs_loses_nothing(page):
    text = write(page)
    page.click("tab-compare")
    page.click("generate")
    page.wait(lambda: page.count(1) > 3)
    page.click("tab-write")  # while it is written
    assert page.text() == text
    page.find("#prompt").send_keys(" and")
    page.click("tab-compare")
    page.wait_for_the_end()
    assert (page.count(0), page.count(1)) == (TOKENS, TOKENS)
    assert page.value("prompt") == f"{PROMPT} and"
    page.click("tab-write")
    assert page.text() == text


def test_a_refusal_leaves_the_text_and_the_prompt(page):
    text = write(page)
    page.write("max_new_tokens", "255")
    page.click("go-on")
    page.wait(lambda: "fit into the context of 256" in page.error())
    assert (page.text(), page.value("prompt")) == (text, PROMPT)
    assert len(page.texts()) == 1
    page.click("generate")
    page.wait(lambda: "fit into the context of 256" in page.error())
    assert (page.text(), page.value("prompt")) == (text, PROMPT)


@pytest.mark.parametrize("moment", ["at once", "first token", "tenth token", "nearly all", "twice"])
def test_a_reload_at_any_moment_loses_nothing(page, float_dir, tokenizer, moment):
    page.write("prompt", PROMPT)
    page.click("generate")
    tokens = {"at once": 0, "first token": 1, "tenth token": 10, "nearly all": TOKENS - 2, "twice": 5}[moment]
    page.wait(lambda: page.count() >= tokens)
    page.open()
    assert page.value("prompt") == PROMPT
    assert page.count() >= tokens
    if moment == "twice":
        page.open()
    page.wait_for_the_end()
    assert page.text() == expected(float_dir, tokenizer)
    assert len(page.texts()) == 1
    assert "ended by length" in page.find(".speed").text


def test_a_reload_side_by_side_loses_nothing(page):
    page.click("tab-compare")
    page.write("prompt", PROMPT)
    page.click("generate")
    page.wait(lambda: page.count(1) > 5)
    page.open()
    page.wait_for_the_end()
    reloaded = page.text(0), page.text(1)
    page.click("generate")
    page.wait_for_the_end()
    assert reloaded == (page.text(0), page.text(1))
    assert len(page.all("#chart rect")) == TOKENS


def test_a_reload_while_the_model_is_loaded_loses_nothing(page, run_dir, float_dir, tokenizer, tmp_path):
    with slow_models(0.01, load_s=2), serving(tmp_path, [str(run_dir)], Choice(str(run_dir), "fp32")) as address:
        page.address = address
        page.open()
        page.write("prompt", PROMPT)
        page.click("generate")
        page.wait(lambda: page.find("#progress").is_displayed())
        page.open()
        page.wait_for_the_end()
        assert page.text() == expected(float_dir, tokenizer)


def test_another_window_sees_the_text_and_picks_it_up(page, float_dir, tokenizer):
    page.write("prompt", PROMPT)
    page.click("generate")
    page.wait(page.count)
    first = page.driver.current_window_handle
    page.driver.switch_to.new_window("tab")
    page.open()
    assert page.count() == 0
    assert "being written" in page.find("#history .meta").text
    page.find("#history .open").click()
    page.wait_for_the_end()
    assert page.text() == expected(float_dir, tokenizer)
    page.driver.close()
    page.driver.switch_to.window(first)


def test_a_lost_connection_loses_nothing(page, slow_address, float_dir, tokenizer):
    with proxied(slow_address) as (proxy, port):
        page.address = f"http://hub.example:{port}{PREFIX}/"
        page.open()
        page.write("prompt", PROMPT)
        page.click("generate")
        page.wait(lambda: page.count() > 3)
        proxy.cut()
        page.wait(lambda: "The connection to gpt2opt is lost" in page.error())
        assert page.count() > 3
        proxy.down = False
        page.wait_for_the_end()
        assert page.text() == expected(float_dir, tokenizer)
        assert page.error() == ""


def test_a_text_that_the_server_has_forgotten_is_kept(page, run_dir, tmp_path):

    page.write("prompt", PROMPT)
    page.write("max_new_tokens", "200")
    page.click("generate")
    page.wait(lambda: page.count() > 10)
    page.click("stop")
    page.wait_for_the_end()
    written = page.text()
    script = "const k = Object.keys(localStorage).find(k => k.startsWith('gpt2opt.text.')); const t = JSON.parse(localStorage.getItem(k));"
    # As if the server had been started anew meanwhile: the text has no end, and nobody knows its stream.
    page.driver.execute_script(
        script + "t.end = null; t.ask.id = 'f'.repeat(24); localStorage.setItem(k, JSON.stringify(t)); location.reload()"
    )
    page.wait(lambda: "does not know this text any more" in page.error())
    assert page.text() == written
    assert page.find("#go-on").is_enabled()


def test_a_full_storage_keeps_the_texts_and_gives_up_what_tokens_were_chosen_from(page):
    first = write(page)
    page.driver.execute_script("try { for (let i = 0; ; i++) localStorage.setItem('x' + i, 'x'.repeat(3000)); } catch { }")
    second = write(page, how="again")
    kept = page.texts()
    assert ["".join(token["text"] for token in text["sides"][0]) for text in kept] == [first, second]
    assert not any("others" in token for token in kept[0]["sides"][0])


def test_copying(page):
    text = write(page)
    page.driver.execute_script("Object.defineProperty(navigator, 'clipboard', {value: undefined})")  # as on a page that came by http
    page.click("copy")
    page.wait(lambda: page.find("#copy").text == "Copied")
    page.find("#prompt").clear()
    page.find("#prompt").send_keys("\ue009", "v")  # Control
    assert page.value("prompt") == (PROMPT + text).replace("\r\n", "\n")


def test_presets(page):
    assert page.value("preset") == "balanced"
    page.open_settings()
    for name, value in FIRST.items():
        assert page.value(name) == (str(value).lower())
    page.choose("preset", "greedy, without repeating")
    assert (page.value("do_sample"), page.value("repetition_penalty")) == ("false", "1.2")
    assert not page.find("#top_p").is_enabled()
    page.write("repetition_penalty", "1.3")
    assert page.value("preset") == "own settings"
    page.choose("preset", "balanced")
    assert page.value("repetition_penalty") == "1.1"
