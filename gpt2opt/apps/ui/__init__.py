"""The page of `gpt2opt ui`: text from a GPT-2 in a browser, on this machine alone. Nothing else imports this room.

`choices` says what can be chosen, `models` makes an IR of it and loads it once for everybody, `turns` lets many streams share the CPU
token by token, `answers` is what one stream yields, `streams` keeps it for a page that comes back, `server` speaks to the page in `page/`.
"""
