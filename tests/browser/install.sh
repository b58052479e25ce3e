#!/usr/bin/env bash
# Installs the browser that the tests of the page drive. Without it they are skipped, and say so.
set -euo pipefail
if command -v chromium > /dev/null && command -v chromedriver > /dev/null; then exit 0; fi
if ! command -v apt-get > /dev/null; then
    echo "no apt-get here: install chromium and chromedriver by hand, or the tests of the page are skipped" >&2
    exit 0
fi
as_root=$([ "$(id -u)" = 0 ] || echo sudo)
$as_root apt-get update -qq
$as_root apt-get install -y -qq --no-install-recommends chromium chromium-driver fonts-dejavu-core
