"""What results of all kinds share: guarantees, errors of gradients, sources of errors, files."""
