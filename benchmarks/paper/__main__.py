from benchmarks.paper.command import main

main()
