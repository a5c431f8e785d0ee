"""The rules, by what they are about; each is a function that yields what contradicts its promise."""
