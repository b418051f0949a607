"""`python -m experiments.doctor`: the doctor by itself, for when the packages that every command needs are missing."""

import argparse
import sys
from pathlib import Path

from experiments.doctor import main

parser = argparse.ArgumentParser(prog="python -m experiments.doctor", description="Is everything there?")
parser.add_argument("study", nargs="?", metavar="STUDY")
parser.add_argument("--out", type=Path, default=Path("results"), metavar="FOLDER")
parser.add_argument("--launcher", metavar="NAME")
parser.add_argument("--json", action="store_true")
given = parser.parse_args()
sys.exit(main(given.study, given.out, given.launcher, given.json))
