"""What the script of an atlas reads."""

import base64
import json
import re
import zlib


def content(path):
    """The data inside an atlas's page."""
    letters = re.search(r'id="atlas-data">([^<]*)</script>', path.read_text()).group(1)
    return json.loads(zlib.decompress(base64.b64decode(letters)))
