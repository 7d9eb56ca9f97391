#!/usr/bin/env python3
from kvwstream.cli import entry

entry()
