#!/usr/bin/env python3
from kvwstream.cli import main

main()
