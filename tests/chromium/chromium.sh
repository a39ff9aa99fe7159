#!/bin/sh
# The pinned Chromium, with the libraries and fonts that came with it: the system needs none.
folder=$(dirname "$(dirname "$(readlink -f "$0")")")/chromium
export LD_LIBRARY_PATH="$folder/al2023/lib" FONTCONFIG_FILE="$folder/fonts.conf"
exec "$folder/chromium" "$@"
