"""Keys and root's home are put together here, so that this file holds none and no scanner stops at it. All keys are made up."""

import string

import pytest

from gpt2opt.apps.submission.private import HOME, find_private

MIXED = "aB3dE5gH7jK9mN1pQ4sT6vX8zA2cF0iLoR5u"
HOME_OF_ROOT = "/" + "root"
HEX = "3f9a1c7e5b2d8046a9e1f7c3d5b80264"
KEYS = {
    "Hugging Face token": "hf_" + "aBcDeFgHjKmNpQrStVxZyWuTsRqPoNmLkJ",  # many have no digit
    "OpenAI key": "sk-" + "proj-" + MIXED,
    "AWS key": "AKIA" + "Z3Q7T5XW2PLM9VND",
    "GitHub token": "ghp_" + MIXED,
    "GitLab token": "glpat-" + MIXED[:20],
    "Google key": "AIza" + MIXED[:35],
    "Slack token": "xoxb-" + MIXED[:24],
    "web token": f"eyJ{MIXED}.eyJ{MIXED}.{MIXED}",
    "private key": "-----BEGIN RSA " + f"PRIVATE KEY-----\n{MIXED}\n-----END RSA " + "PRIVATE KEY-----",
}


def kinds(text: str) -> list[str]:
    return [finding.pattern.what for finding in find_private(text)]


@pytest.mark.parametrize("what", KEYS)
def test_a_key_is_found_whole_and_once(what):
    text = f"login('{KEYS[what]}')\nprint(1)"
    (finding,) = find_private(text)
    assert finding.pattern.what == what
    assert text[finding.start : finding.end] == KEYS[what]
    assert finding.pattern.todo


def test_a_fine_grained_token_of_github_is_found():
    assert kinds("github_pat_" + MIXED + "_" + MIXED) == ["GitHub token"]


def test_a_home_folder_before_a_key_does_not_hide_it():
    assert kinds(f"token=/home/jane/{MIXED}") == ["key, by the name before it"]


@pytest.mark.parametrize("quote", ['"', '\\"', "'"])
def test_a_kaggle_key_is_found_in_its_json_as_it_is_and_escaped(quote):
    text = f"{{{quote}username{quote}: {quote}jane{quote}, {quote}key{quote}:{quote}{HEX}{quote}}}"
    (finding,) = find_private(text)
    assert finding.pattern.what == "key, by the name before it"
    assert text[finding.start : finding.end] == HEX


@pytest.mark.parametrize(
    "text",
    [
        f'WANDB_API_KEY = "{HEX}"', f"os.environ['AWS_SECRET_ACCESS_KEY'] = '{MIXED}'", f'"access_token": "{MIXED}"',
        f"wandb.login(key='{HEX}')",        f"Authorization token: Bearer {MIXED}",
    ],
)  # fmt: skip
def test_a_value_is_found_by_the_name_before_it(text):
    assert kinds(text) == ["key, by the name before it"]


def test_passwords_are_found():
    assert kinds('password = "hunter2!"') == ["password"]
    assert kinds("https://jane:hunter2secret@example.org/x") == ["password in an address"]


@pytest.mark.parametrize(
    "text",
    [
        "sk-" + "learn-contrib-and-more-of-it",
        'HF_TOKEN = "your_token_goes_here_1234"', "HF_TOKEN=''",
        'password = "your password"', 'password = getpass("Password: ")', "pad_token_id=50256",
        "tokenizer = 'distilbert-base-uncased-finetuned'",
        f"sha256 {HEX}{HEX}", f"integrity: sha256-{MIXED}{MIXED}=", "e2c1f0b4-5d6a-4c3b-9f8e-7a6b5c4d3e2f",
        f"https://drive.example.org/file/d/{MIXED}/view", "callFunctionCheckIfDataAlreadyExistsPerpetualSubinventory2",
        "recallNoticesRecallBusinessUnits-validation-group-1297083594-1", "GPT2LMHeadModel GPT2DoubleHeadsModelOutputWithPast3Layers",
        string.ascii_letters + string.digits, "token = batch['input_ids'][0].tolist()[:16]",
    ],
)  # fmt: skip
def test_no_alarm_where_there_is_no_key(text):
    assert kinds(text) == []


def test_a_key_is_shown_by_its_beginning_alone():
    (finding,) = find_private(KEYS["Hugging Face token"])
    assert str(finding) == "Hugging Face token hf_aB… (37 characters)"


@pytest.mark.parametrize(
    ("text", "home"),
    [
        ("open('/home/jane/x.txt')", "/home/jane"), ("/home/jane.doe-2/", "/home/jane.doe-2"), ("file:///Users/Jane/a", "/Users/Jane"),
        ("saved to /home/jane.", "/home/jane"), (f"cd {HOME_OF_ROOT}", HOME_OF_ROOT), (f'"{HOME_OF_ROOT}/.cache"', HOME_OF_ROOT),
        ("\x1b[0;32m/home/jane/x.py", "/home/jane"),
        (r"C:\Users\Jane Doe\x.py", r"C:\Users\Jane Doe"),
        (r'"c:\\Users\\Jane\\x"', r"c:\\Users\\Jane"), ("C:/Users/Jane/x", "C:/Users/Jane"),
        ("/mnt/c/Users/Jane/x", "/mnt/c/Users/Jane"), ("/home/jürgen/x", "/home/jürgen"),
    ],
)  # fmt: skip
def test_a_home_folder_is_found(text, home):
    assert [(found.pattern, text[found.start : found.end]) for found in find_private(text)] == [(HOME, home)]


@pytest.mark.parametrize(
    "text",
    ["https://example.org/home/page", "~/home/x", "/home/<you>", "/rooted", "tree/root", "/usr/lib/python3.11", "/home", "src/Users/x"],
)
def test_other_paths_are_no_home_folders(text):
    assert find_private(text) == []
