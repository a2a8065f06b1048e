"""The command `rapidetr`: one small file for each verb, which parses, calls and prints."""
