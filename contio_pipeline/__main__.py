"""`python -m contio_pipeline` is `contio-pipeline`."""

from contio_pipeline.cli import main

if __name__ == "__main__":
    main()
