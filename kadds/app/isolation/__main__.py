"""What the engine's process starts: `python -m kadds.app.isolation`, its standard input being the wire."""

from kadds.app.isolation.child import main

if __name__ == "__main__":
    main()
