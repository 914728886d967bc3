"""Does a bundle do what was trained?"""
