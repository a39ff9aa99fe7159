// Unpack the Chromium of @sparticuz/chromium, the libraries it needs and its fonts into the folder that TMPDIR names.
import { inflate } from "@sparticuz/chromium";
import { readdirSync } from "node:fs";
import { fileURLToPath } from "node:url";

const packed = new URL("../bin/", import.meta.resolve("@sparticuz/chromium"));
await Promise.all(readdirSync(packed).map((name) => inflate(fileURLToPath(new URL(name, packed)))));
