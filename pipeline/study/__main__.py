"""Print the JSON schema of a configuration, or with `--markdown` its documentation page."""

import json
import sys

from pipeline.study.schema import markdown, schema

if sys.argv[1:] == ["--markdown"]:
    print(markdown(), end="")
else:
    print(json.dumps(schema(), indent=2, ensure_ascii=False))
