"""Files of other formats: in with `import_file`, out with `export_file`."""

from holdfast.exchange.exporting import export_file
from holdfast.exchange.importing import import_file

__all__ = ["export_file", "import_file"]
