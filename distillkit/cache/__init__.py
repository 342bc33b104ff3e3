"""The store of teacher outputs: formats, writer, reader."""
