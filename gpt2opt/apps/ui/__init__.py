"""The page of `gpt2opt ui`: text from a GPT-2 in a browser, on this machine alone. Nothing else imports this room.

`choices` says what can be chosen, `prepare` makes an IR of it, `library` loads it once for everybody, `turns` lets many streams share the
CPU token by token, `answer` and `lockstep` are one stream each, and `server` speaks to the page, which lies in `page/`.
"""
