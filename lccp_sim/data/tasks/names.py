"""People and places for the probe's texts, written for this project.

Every list is split into two disjoint halves: even places for fine-tuning, odd places for the evaluation. Design note:
names of many languages are mixed, unlike in real text. This is harmless, because a name only has to be rare.
"""

FIRST = tuple(
    """
    Ada Adele Agnes Aidan Aino Alain Alba Albert Alina Alma Amalia Amos Andrea Anneke Anton Antonia Ariel Arno Arvid
    Astrid Augustin Aurora Axel Barbara Basil Beata Bela Benno Berit Bernard Bertha Bianca Blanche Boris Brigitta Bruno
    Camilla Carla Carsten Cecilia Celeste Cesar Chiara Clara Claudio Clemens Conrad Cora Cosima Cyril Dagmar Dalia
    Damian Daria Dario David Delia Denis Diana Dimitri Dora Dorian Edgar Edith Edmund Edwin Eleni Elias Elisa Elmar
    Elsa Emeric Emil Emilia Enrico Enzo Erik Erna Ernest Esther Eugenia Eva Ezra Fabian Fabio Fanny Felicia Felix
    Ferdinand Fergus Filippa Finn Flavia Flora Florian Franca Frida Gabriel Georg Gerda Gilbert Gisela Gloria Gregor
    Greta Gunnar Gustav Hanna Harald Hedwig Heidi Helena Helga Henrik Hilda Horst Hugo Ibrahim Ida Ignaz Igor Ilona
    Imke Ines Ingmar Irena Irma Isabel Ivan Jacob Jana Janis Jasper Joachim Joel Johanna Jolanda Jonas Josefa Judith
    Julian Juno Kaja Karin Karol Kaspar Katja Kilian Klara Kornel Lara Lars Laura Leander Leona Leopold Lidia Linus
    Livia Lorenz Luca Ludwig Luisa Lydia Magda Magnus Malte Manuel Marco Margit Marius Marta Mathis Maxim Melina Mila
    Milan Mina Miriam Moritz Nadia Natalia Nelly Nestor Nicola Nils Nina Noah Nora Norbert Odette Olaf Olga Orlando
    Oscar Otto Pablo Pascal Paula Pavel Petra Philip Quentin Quirin Rafael Ragnar Ramona Rebecca Regina Reinhold Rita
    Robin Roland Rosa Ruben Rufus Sabina Samuel Sandra Sebastian Selma Sigrid Silas Simon Sofia Stella Susanna Sven
    Tabea Tamara Teodor Thea Tilda Tobias Ulrika Urs Valentin Vera Viktor Viola Walter Wanda Wilma Xaver Yara Yvonne
    Zeno Zita
    """.split()
)
LAST = tuple(
    """
    Abel Ackers Adler Ahrens Albers Amato Anders Arndt Aubert Auer Bacher Bakker Balint Baranov Barth Bauer Becker
    Bellini Benning Berg Bianchi Binder Blom Bogner Bonnet Borg Bosch Brandt Braun Breuer Bruckner Busch Calder Calvo
    Carlsen Carver Castel Cerny Clausen Colmar Conti Costa Cramer Dahl Dekker Delgado Denk Dietz Dorn Drexler Dumont
    Duran Ebner Eckert Egger Ehrlich Eklund Engel Ernst Esposito Fabre Falk Farkas Fechner Ferrer Fiala Fink Fischer
    Forster Frank Freund Frey Fuchs Gallo Garde Gebhard Geiger Gerber Glaser Goran Graf Grimaldi Gruber Gutierrez Haas
    Hagen Halvorsen Hansen Harms Hartley Hauser Hecht Heller Hendriks Herrera Hoffmann Holm Horak Huber Ibsen Imhof
    Iversen Jahn Janssen Jelinek Jensen Jost Juhasz Kaiser Kaminski Kaufmann Keller Kemp Kessler Kiraly Klein Knudsen
    Koller Kovac Kraus Kroll Kuhn Lambert Lang Larsen Laurent Lehmann Leone Lindner Lopez Lorca Ludovic Lund Maier
    Malik Manning Marchetti Martens Mason Mercer Messner Meyer Molnar Moreau Moser Mulder Munk Nagel Navarro Neumann
    Nielsen Nikolic Novak Nowicki Oberhuber Oliveira Olsen Orban Ostrow Otten Palmer Parodi Paulsen Perez Pichler
    Pohl Popov Prager Quast Rader Ramirez Rasmussen Rauch Reiter Renner Ricci Richter Riedel Roche Romano Roth Rupp
    Sandor Santos Sauer Schaffer Schenk Schilling Seidel Serrano Sievers Simonetti Soler Sommer Sorel Spengler Stadler
    Steiner Stolz Strand Sturm Szabo Tanner Thaler Tiller Toth Trautmann Turner Ullmann Urban Valdez Varga Vidal Vogel
    Voss Wagner Walch Weber Wendt Werner Wieland Winkler Witte Wolf Wouters Zander Zauner Zeller Ziegler Zimmer Zoric
    """.split()
)
CITIES = tuple(
    """
    Aachen Aarhus Aberdeen Ajaccio Almeria Amiens Ancona Angers Antwerp Arezzo Arles Athens Augsburg Aveiro Avignon
    Baden Badajoz Bamberg Barcelona Bari Basel Bastia Bayreuth Belfast Belgrade Bergamo Bergen Berlin Bern Besancon
    Bielefeld Bilbao Bologna Bolzano Bonn Bordeaux Braga Brasov Bratislava Bregenz Bremen Brescia Brest Bristol Brno
    Bruges Brussels Bucharest Budapest Burgos Cadiz Caen Cagliari Calais Cardiff Catania Chania Chemnitz Coimbra
    Cologne Constanta Copenhagen Cordoba Cork Cottbus Coventry Cremona Debrecen Delft Derby Dijon Dortmund Dresden
    Drammen Dublin Dundee Durham Edinburgh Eindhoven Erfurt Espoo Essen Evora Exeter Faro Ferrara Florence Foggia
    Frankfurt Freiburg Galway Gdansk Gdynia Geneva Genoa Ghent Girona Glasgow Gothenburg Granada Graz Grenoble
    Groningen Haarlem Halle Hamburg Hanover Heidelberg Helsinki Huelva Hull Innsbruck Ioannina Istanbul Izmir Jena
    Kaiserslautern Karlsruhe Kassel Katowice Kaunas Kavala Kiel Kiev Klagenfurt Klaipeda Koblenz Kosice Krakow Larissa
    Lausanne Leeds Leicester Leiden Leipzig Lemgo Leon Lille Limerick Limoges Linz Lisbon Liverpool Ljubljana Lleida
    Lodz Logrono London Lublin Lucca Lucerne Lugano Lugo Lyon Maastricht Madrid Magdeburg Mainz Malaga Malmo Manchester
    Mannheim Maribor Marseille Messina Metz Milano Modena Mons Montpellier Mulhouse Munich Munster Murcia Namur Nancy
    Nantes Naples Narva Newport Nijmegen Nimes Nottingham Novara Nuremberg Odense Odessa Olomouc Orebro Orleans
    Osijek Oslo Ostrava Oulu Oviedo Oxford Padua Palermo Pamplona Parma Patras Pecs Perugia Pisa Plovdiv Plymouth
    Poitiers Porto Potsdam Poznan Prague Rennes Reims Riga Rijeka Rome Rostock Rouen Rovaniemi Ruse Salamanca Salerno
    Salzburg Santander Sarajevo Seville Sheffield Siena Skopje Sofiya Split Stavanger Stockholm Strasbourg Stuttgart
    Szeged Tallinn Tampere Tarragona Tartu Timisoara Tirana Toledo Toulon Toulouse Tours Trieste Tromso Trondheim
    Turin Turku Udine Ulm Uppsala Utrecht Valencia Varna Venice Verona Vicenza Vienna Vigo Vilnius Warsaw Weimar
    Wroclaw York Zadar Zagreb Zaragoza Zurich
    """.split()
)
SCHOOLS = ("University", "Academy", "College", "Polytechnic", "Institute")
UNIVERSITIES = tuple(f"{place} {SCHOOLS[i // 2 % len(SCHOOLS)]}" for i, place in enumerate(CITIES))
MONTHS = tuple("January February March April May June July August September October November December".split())
BIRTHDAYS = tuple(f"{1 + 5 * i % 28} {MONTHS[7 * i % 12]} {1940 + 13 * i % 60}" for i in range(420))
