"""Run the real img2dataset: ``python crawl.py '{"url_list": …}'`` in an environment that has it."""

import json
import sys

from img2dataset import download

if __name__ == "__main__":  # it starts its workers with spawn, and they import this file
    download(**json.loads(sys.argv[1]))
