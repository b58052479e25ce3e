"""The page in a headless Chromium: a person who types, clicks, hovers, stops and reloads."""

import json
import urllib.request

import pytest

from gpt2opt.decoding.generation import generate
from gpt2opt.decoding.settings import DecodingSettings
from gpt2opt.runtime.ir_model import load_ir

pytestmark = pytest.mark.slow
PROMPT = "Node 7 of graph"
TOKENS = 60
FIRST = {"max_new_tokens": TOKENS, "do_sample": True, "temperature": 0.7, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.1}
"""The settings that the page has at the first visit."""


def expected(folder, tokenizer, **settings) -> str:
    found = generate(load_ir(folder), [PROMPT], DecodingSettings(**{**FIRST, **settings}), tokenizer)
    return found[0].text


def test_a_prompt_is_continued_and_regenerated(page, float_dir, tokenizer):
    page.write("prompt", PROMPT)
    page.click("generate")
    page.wait_for_the_end()
    assert page.text() == expected(float_dir, tokenizer, seed=0)
    speed = page.find(".speed").text
    for part in ("decode", "tokens/s", "time", "RAM of the server", "MB", "ended by length"):
        assert part in speed
    assert "FP32" in page.find(".side h3").text
    assert "sampling at 0.7, seed 0" in page.find(".side h3").text
    page.click("again")
    page.wait_for_the_end()
    assert page.value("seed") == "1"
    assert page.text() == expected(float_dir, tokenizer, seed=1)


def test_text_streams_and_is_stopped(page):
    page.write("prompt", PROMPT)
    page.write("max_new_tokens", "200")
    page.click("generate")
    page.wait(lambda: page.count() > 2)
    seen = page.count()
    page.wait(lambda: page.count() > seen)
    assert "tokens/s" not in page.find(".speed").text or page.count() > 5  # a rate over four tokens says nothing
    page.wait(lambda: "decode" in page.find(".speed").text)  # live
    page.click("stop")
    page.wait_for_the_end()
    assert seen < page.count() < 200
    assert "ended by stopped" in page.find(".speed").text


def test_a_stop_in_one_window_leaves_the_other_alone(page, slow_address):
    first = page.driver.current_window_handle
    for window in ("first", "second"):
        if window == "second":
            page.driver.switch_to.new_window("tab")
            page.driver.get(slow_address)
            page.wait(lambda: page.driver.execute_script("return document.documentElement.dataset.ready"))
        page.write("prompt", PROMPT)
        page.write("max_new_tokens", "100")
        page.click("generate")
        page.wait(page.count)
    page.click("stop")
    page.wait_for_the_end()
    assert page.count() < 100
    page.driver.close()
    page.driver.switch_to.window(first)
    page.wait_for_the_end()
    assert page.count() == 100


def test_the_text_is_continued_and_edited(page):
    page.write("prompt", PROMPT)
    page.click("generate")
    page.wait_for_the_end()
    whole = PROMPT + page.text()
    page.click("go-on")
    page.wait_for_the_end()
    assert page.value("prompt") == whole
    assert page.count() == TOKENS
    longer = whole + page.text()
    page.click("edit")
    assert page.value("prompt") == longer
    page.find("#prompt").send_keys(" and")
    page.click("generate")
    page.wait_for_the_end()
    assert page.find(".text .prompt").text.endswith(" and")


def test_hovering_shows_the_probability_and_five_others(page):
    from selenium.webdriver import ActionChains

    page.write("prompt", PROMPT)
    page.click("generate")
    page.wait_for_the_end()
    (answer,) = page.texts()
    spans = page.all(".token")
    place = next(place for place, span in enumerate(spans) if span.text.strip() and " " not in span.get_attribute("data-tokens"))
    ActionChains(page.driver).move_to_element(spans[place]).perform()
    page.wait(lambda: page.find("#hover").is_displayed())
    token = answer["sides"][0][int(spans[place].get_attribute("data-tokens"))]
    assert f"{100 * token['probability']:.1f}%" in page.find("#hover .chosen").text or token["probability"] < 0.001
    assert len(page.all("#hover .bar")) == 6
    shown = page.find("#hover").text
    for piece, _ in token["others"]:
        assert piece.replace(" ", "␣").replace("\n", "↵") in shown


def test_a_stop_string_ends_the_text(page, float_dir, tokenizer):
    whole = expected(float_dir, tokenizer, do_sample=False)
    stop = whole[6:9]
    page.open_settings()
    page.choose("do_sample", "false")
    page.write("stop_strings", stop)
    page.write("prompt", PROMPT)
    page.click("generate")
    page.wait_for_the_end()
    assert page.text() == whole[: whole.find(stop)]
    assert "stop string" in page.find(".speed").text


def test_side_by_side(page):
    page.click("tab-compare")
    page.write("prompt", PROMPT)
    page.write("max_new_tokens", "60")
    page.click("generate")
    page.wait_for_the_end()
    page.wait(lambda: len(page.all("#chart rect")) == 60)
    left, right = page.text(0), page.text(1)
    for title, name in zip(page.all(".side h3"), ("FP32", "INT8"), strict=True):
        assert name in title.text
    kept = page.texts()[-1]["sides"]
    step = next(step for step, (one, two) in enumerate(zip(*kept, strict=True)) if one["id"] != two["id"])
    marked = page.all(".token.parts")
    assert [str(step) in span.get_attribute("data-tokens").split() for span in marked] == [True, True]
    assert f"chose the same {step} tokens, then part at token {step + 1}" in page.find("#verdict").text
    assert left != right
    figures = page.find("#figures").text
    for row in ("FP32 INT8", "prefill", "decode", "weights", "peak memory"):
        assert row in figures


def test_what_the_page_refuses_is_said_in_it(page):
    page.click("generate")
    assert page.error() == "The prompt is empty: write at least a word."
    page.write("prompt", PROMPT)
    page.open_settings()
    for name, value, said in (
        ("top_p", "1.5", "Top-p can't be 1.5: choose a number above 0 and at most 1."),
        ("temperature", "0", "Temperature can't be 0: choose a number from 0.001 to 1000."),
        ("max_new_tokens", "2.5", "New tokens can't be 2.5: choose a whole number of at least 1."),
        ("seed", "", "Seed can't be empty: choose a whole number of at least 0."),
    ):
        before = page.value(name)
        page.write(name, value)
        page.click("generate")
        assert page.error() == said
        assert page.find(f"#{name}").get_attribute("aria-invalid") == "true"
        page.write(name, before)
    for characters, said in (
        (200_000, "fit into the context of 256: shorten it"),
        (2_000_000, "are too long: shorten"),
    ):
        page.driver.execute_script(
            "const prompt = document.getElementById('prompt'); prompt.value = 'a'.repeat(arguments[0]);"
            "prompt.dispatchEvent(new Event('input', {bubbles: true}))",
            characters,
        )
        page.click("generate")
        page.wait(lambda said=said: said in page.error())


def test_the_toggle_shows_what_int8_costs(page):
    page.choose("precision", "w8a8")
    page.wait(lambda: "INT8 costs 0.0020 nats of KL per token, 95% interval" in page.find("#cost").text)
    page.click("load")
    page.wait(lambda: "INT8 is loaded" in page.find("#loaded").text)


def test_a_reload_keeps_prompt_settings_look_and_text(page):
    page.open_settings()
    page.choose("precision", "w8a8")
    page.write("prompt", PROMPT)
    page.write("max_new_tokens", "7")
    page.choose("theme", "dark")
    assert page.driver.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 28)"
    page.driver.execute_script(
        "const size = document.getElementById('font-size'); size.value = 24; size.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    page.click("generate")
    page.wait_for_the_end()
    text = page.text()
    page.open()
    assert (page.value("prompt"), page.value("max_new_tokens"), page.text()) == (PROMPT, "7", text)
    assert page.find("#precision :checked").get_property("value") == "w8a8"
    assert page.find(".text").value_of_css_property("font-size") == "24px"
    assert page.driver.execute_script("return getComputedStyle(document.documentElement).colorScheme") == "dark"


def test_the_command_serves_the_page(run_dir, tmp_path):
    from tests.apps.ui.browser import served

    with served(str(run_dir), "--precision", "w8a8", "--out", str(tmp_path / "ui")) as address:
        with urllib.request.urlopen(f"{address}/facts") as reply:
            facts = json.load(reply)
        with urllib.request.urlopen(address) as reply:
            assert b"<title>gpt2opt</title>" in reply.read()
    assert facts["first"] == {"model": str(run_dir), "precision": "w8a8"}
    assert str(run_dir) in facts["models"]


def test_exports(page):
    page.write("prompt", PROMPT)
    page.write("max_new_tokens", "7")
    page.click("generate")
    page.wait_for_the_end()
    page.click("save-json")
    page.click("save-text")
    files = [page.downloads / "gpt2opt.json", page.downloads / "gpt2opt.txt"]
    page.wait(lambda: all(file.exists() for file in files))
    content = json.loads(files[0].read_text())
    assert content["sides"][0]["text"] == page.text()
    assert content["settings"]["max_new_tokens"] == 7
    assert len(content["sides"][0]["tokens"][0]["others"]) == 5
    assert files[1].read_text() == PROMPT + page.text()
