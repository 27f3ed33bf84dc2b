"""Dead letters as an app's operators use them: counted, filtered, shown, sent back, purged."""
