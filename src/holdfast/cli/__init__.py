"""The command `holdfast`: parses, calls the library's verbs, prints."""
