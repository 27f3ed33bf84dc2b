"""A small bookshop that takes orders and writes mails."""
