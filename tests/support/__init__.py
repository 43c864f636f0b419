"""What tests share: servers, waiting, the rule for CI. One file per concern."""
