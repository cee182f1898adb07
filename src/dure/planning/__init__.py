"""What will a model cost on this machine: memory, speed, energy, money, before it is downloaded?"""
